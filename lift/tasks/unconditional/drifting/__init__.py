"""The tri-planar drifting loss: groups, frozen features, additive statistics, forces."""
