"""Plain networks, which users would take instead: trained whole, from the sources alone."""
