"""The round loop: requests, review, aggregation, checkpoints."""
