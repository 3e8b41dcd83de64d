"""What a hospital computes for itself: report, choice of method, their progress."""
