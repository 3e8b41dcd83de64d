"""Looks at volumes before they are used: how they were acquired, whether they fit together."""
