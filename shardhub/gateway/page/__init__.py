"""The web page at /: a chat with the model and a live view of its chain, served from this package alone."""
