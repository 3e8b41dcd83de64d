"""Metrics of synthetic volumes: challenge protocols, through-plane coherence, intervals."""
