"""A release folder: manifest, signature, approvals. Does not need torch."""
