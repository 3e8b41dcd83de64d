"""Patient-level differential privacy: noise, clipping, accounting, ledger."""
