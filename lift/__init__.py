"""LiFT-federated: what servers, clients and simulations share."""

import os

# Read when torch loads its thread pool: waiting threads soon sleep instead of spinning. On a
# machine that others use as well, spinning made a training step ten times slower; sleeping at
# once made it half as slow again on a quiet one.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
