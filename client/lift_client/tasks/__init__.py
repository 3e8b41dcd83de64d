"""What a site computes under a plan, by the kind of its task."""
