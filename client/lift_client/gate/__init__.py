"""What leaves a site: policy, journal, privacy ledger and budget."""
