"""The benchmark: what a volume costs by LiFT and by 1000-step cWDM, with one counter."""
