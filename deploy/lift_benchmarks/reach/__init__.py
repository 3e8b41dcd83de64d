"""Quality against parameters: mixers of several sizes beside a plain 3D network, to a plateau."""
