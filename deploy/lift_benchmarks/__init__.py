"""Measurements around the product; they are not part of the wheel."""
