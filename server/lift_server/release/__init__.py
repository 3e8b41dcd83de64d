"""What leaves the coordinator: the finished mixer, its record and its signature."""
