"""pydantic models of every YAML file; nothing here imports torch."""
