"""A simulated run by the kind of its task."""
