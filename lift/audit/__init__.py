"""Attacks on releases, to test whether a privacy claim holds in the code that runs."""
