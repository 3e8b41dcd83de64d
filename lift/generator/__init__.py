"""The frozen slice generator: interface, networks, bundle with fingerprint, pre-training."""
