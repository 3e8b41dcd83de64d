"""`lift-server try`: a whole federation on this machine, of real processes, on phantom volumes."""
