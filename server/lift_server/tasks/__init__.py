"""What the server makes of the sites' answers, by the kind of task."""
