"""A whole federation in one process; the only package that may import both sides."""
