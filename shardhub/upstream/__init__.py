"""What is needed of other packages beyond their public names: one module a package, and a test that each is there."""
