"""New volumes: a frozen slice decoder, driven along the body by a trained trajectory mapper."""
