"""Messages between server and sites; `flower` is the only module that imports flwr."""
