"""The release: the finished mixer, its record and its signature."""
