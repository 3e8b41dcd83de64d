"""The server's side of the tasks, by kind."""
