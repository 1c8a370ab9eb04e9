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


def test_a_pipe_gets_a_line_for_each_activity(capsys: pytest.CaptureFixture[str]) -> None:
    """Figures that change are left out, as they would stand there unchanged; addresses are written whole."""
    terminal = Terminal()
    for seconds in range(3):
        terminal.doing(f"waiting for 10.0.0.1:50051 and 10.0.0.2:50051 to load: {seconds} s")
    terminal.doing("waiting for 10.0.0.2:50051 to load: 3 s")
    terminal.doing("")
    assert capsys.readouterr().err.splitlines() == [
        "waiting for 10.0.0.1:50051 and 10.0.0.2:50051 to load",
        "waiting for 10.0.0.2:50051 to load",
    ]
