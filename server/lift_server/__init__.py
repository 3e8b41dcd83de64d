"""The coordinator: round loop, review, aggregation, record."""
