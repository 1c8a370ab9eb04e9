"""The use cases of the toolkit, for commands, programs and services; none needs a terminal."""

import logging

# A program that does not configure logging gets no log lines of ours on stderr.
# uvicorn serves the gateway, and would report the requests that it cancels at the end.
for name in ("shardhub", "uvicorn"):
    logging.getLogger(name).addHandler(logging.NullHandler())
