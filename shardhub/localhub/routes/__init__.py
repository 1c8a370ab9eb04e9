"""What the local Hub answers, one kind of request a module."""
