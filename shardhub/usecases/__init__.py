"""The use cases: what a command, a program or a resident does with the toolkit, without a terminal."""

import logging

# A program that configures no logging gets no lines of ours on stderr.
logging.getLogger("shardhub").addHandler(logging.NullHandler())
