"""The page at /: a chat with the model and a live picture of its chain, in a browser, from this package alone."""
