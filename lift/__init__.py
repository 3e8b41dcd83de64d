"""LiFT-federated: what servers, clients and simulations share."""

import os

# Read when torch loads its thread pool: waiting threads sleep instead of spinning. On a machine
# that others use as well, spinning made a training step ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
