"""The record that a node keeps of what it does."""

from __future__ import annotations

from pathlib import Path

from shardhub.resident.records import read_record
from shardhub.usecases.node_record import RecordingWatcher
from shardhub.usecases.watcher import SILENT


def test_how_far_an_activity_is_goes_into_the_record(tmp_path: Path) -> None:
    """Whoever waits for the node sees that it gets on, also where it counts files and not bytes."""
    path = tmp_path / "node.json"
    RecordingWatcher(path, SILENT).doing("verifying weight files: 3 of 20")
    record = read_record(path)
    assert record is not None
    assert record.doing == "verifying weight files: 3 of 20"
