"""The local Hub's request handlers, one kind of request per module."""
