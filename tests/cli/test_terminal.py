"""What a use case reports, as it is written to a pipe."""

from __future__ import annotations

import pytest

from shardhub.cli.terminal import Terminal
from shardhub.usecases.watcher import Progress


def test_a_pipe_gets_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    """Files that are read, uploaded and discarded in turn, several at a time, do not repeat a share."""
    terminal = Terminal()
    for _ in range(2):  # a second push of the same size is told from its beginning
        for done in (*range(0, 500, 5), *range(480, 1001, 5)):
            for activity in ("reading", "uploading", "done"):
                state = Progress(activity=activity, item=f"file {done}", done=done * 10**6, total=10**9)
                terminal.progress(state)
    lines = capsys.readouterr().err.splitlines()
    shares = [line.removeprefix("reading: ").removesuffix(" of 1.00 GB") for line in lines]
    assert shares == [f"{share}%" for share in range(10, 101, 10)] * 2
