"""Private names used from other packages: one module per package, and a test that each name exists."""
