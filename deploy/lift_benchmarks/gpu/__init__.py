"""`make bench-gpu`: what one GPU does with the product, in at most ten minutes."""
