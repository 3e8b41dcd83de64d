"""The paired task: a missing channel from registered source channels."""
