"""The preflight checks of a site."""
