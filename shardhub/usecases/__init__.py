"""The use cases of the toolkit, for commands, programs and services; none needs a terminal."""

import logging

# A program that does not configure logging gets no log lines of ours on stderr.
logging.getLogger("shardhub").addHandler(logging.NullHandler())
