"""What the sites and the server compute together: a task by its kind."""
