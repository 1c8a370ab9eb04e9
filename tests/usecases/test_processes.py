"""Commands in processes of their own: how they are written, and the error of one that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardhub.errors import ChainError
from shardhub.usecases.processes import Processes, command_text, run_command


def test_a_command_is_written_as_a_person_types_it() -> None:
    """Settings become options: True has no value, a tuple becomes one option for each value, and texts are quoted."""
    assert (
        command_text("generate", manifest="a/b-pipeline", node=("h:1", "h:2"), no_local=True, prompt="two words")
        == "shardhub generate --manifest a/b-pipeline --node h:1 --node h:2 --no-local --prompt 'two words'"
    )


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    """The error ends with the command's own words, from its log."""
    with pytest.raises(ChainError, match="not split") as caught:
        run_command("split", "nowhere", str(tmp_path), log=tmp_path / "log", failure="It was not split.", stages=2)
    assert "nowhere" in caught.value.why


def test_a_process_that_ends_before_it_is_ready_says_why(tmp_path: Path) -> None:
    """The wait for a process ends with an error as soon as the process ends."""
    with Processes(tmp_path) as processes, pytest.raises(ChainError, match="did not start") as caught:
        processes.ready(processes.start("hub", "serve", dir=str(tmp_path / "no-hub"), json=True))
    assert "does not hold a Hub" in caught.value.why
