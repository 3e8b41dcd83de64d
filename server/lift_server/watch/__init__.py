"""The view of a run: board, status, live page."""
