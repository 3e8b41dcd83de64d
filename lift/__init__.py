"""LiFT-federated: what servers, clients and simulations share."""
