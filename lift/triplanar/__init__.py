"""Windows of volumes in three planes, and their standardised features, for loss and evaluation."""
