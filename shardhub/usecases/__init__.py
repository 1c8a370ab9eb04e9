"""The use cases: what a command, a program or a resident does with the toolkit, without a terminal."""
