"""Windows of volumes in three planes, and their standardised features: shared by loss and judge."""
