"""Computations for the hospital itself: report, choice of method, progress display."""
