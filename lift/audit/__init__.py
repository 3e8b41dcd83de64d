"""Attacks on what is released, to see whether a privacy claim holds in the code that runs."""
