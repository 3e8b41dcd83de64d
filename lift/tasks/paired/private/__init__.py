"""Patient-level privacy of the paired task: per-patient gradients and noisy start sums."""
