"""This machine's resident as a process: whether it runs, started in the background, and ended."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from shardhub.errors import NodeFailure, ShardhubError, UsageError
from shardhub.resident.processes import shorten, start_outliving
from shardhub.resident.records import NodeRecord, NodeState, read_record
from shardhub.resident.words import option, switch
from shardhub.usecases.cluster_place import ClusterPlace
from shardhub.usecases.resident import ResidentSettings
from shardhub.usecases.watcher import SILENT, Watcher

# A resident loads no MLX, but Python's compiler may have to work on a new installation.
_START_S = 60.0
_LOOK_S = 0.05
_STOP_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentStatus:
    """Whether a resident runs here.

    Attributes:
        pid, address: Of the one that runs; None if none does.
        is_ready: Whether it answers.
        failure: What the last one ended with, if it failed.
        log: Its log, if it ran in the background.
    """

    pid: int | None
    address: str | None
    is_ready: bool
    failure: ShardhubError | None
    log: Path

    @property
    def is_running(self) -> bool:
        """Whether one runs."""
        return self.pid is not None


def resident_status(place: ClusterPlace) -> ResidentStatus:
    """Look whether a resident runs on this machine."""
    folder = place.folder
    record = read_record(folder.record)
    process = None if record is None else record.process
    failure = None if record is None or record.failure is None else record.failure.as_error()
    is_ready = record is not None and process is not None and record.state is NodeState.READY
    return ResidentStatus(
        pid=None if process is None else process.pid,
        address=record.address if is_ready and record is not None else None,
        is_ready=is_ready,
        failure=failure if process is None else None,
        log=folder.log,
    )


def ensure_running(settings: ResidentSettings, watcher: Watcher = SILENT) -> ResidentStatus:
    """Start a resident in the background unless one runs; it ends with a reboot.

    Raises:
        ShardhubError: It ended at once, with this error.
        NodeFailure: It does not get ready.
    """
    status = resident_status(settings.place)
    if not status.is_running:
        watcher.doing("starting the resident")
        _start_detached(settings)
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        status = resident_status(settings.place)
        if status.is_ready:
            watcher.doing("")
            return status
        if status.failure is not None:
            raise status.failure
        time.sleep(_LOOK_S)
    raise NodeFailure(
        "The resident does not get ready.", why=f"It was started {_START_S:.0f} s ago.", hint=f"Read {status.log}."
    )


def _start_detached(settings: ResidentSettings) -> None:
    folder = settings.place.folder
    folder.record.unlink(missing_ok=True)
    shorten(folder.log)
    with folder.log.open("ab") as output:
        start_outliving(resident_words(settings), output, _environment(settings.place))


def _environment(place: ClusterPlace) -> dict[str, str]:
    named = {"SHARDHUB_STATE": place.state, "SHARDHUB_TLS": place.tls}
    return {**os.environ, **{name: str(path.absolute()) for name, path in named.items() if path is not None}}


def resident_words(settings: ResidentSettings) -> list[str]:
    """The command that runs a resident with these settings, without the program."""
    return [
        *("resident", "run"),
        *option("port", settings.port),
        *option("name", settings.name),
        *option("host", settings.host),
        *switch("insecure-lan", settings.insecure_lan),
        *switch("no-discovery", not settings.is_discovered),
        *(word for seed in settings.seeds for word in option("seed", seed)),
    ]


def stop_resident(place: ClusterPlace, *, keep_nodes: bool = False) -> bool:
    """End this machine's resident and its nodes, those too that an earlier one left; returns whether anything ran.

    Args:
        keep_nodes: Leave the nodes, which the next resident finds.

    Raises:
        NodeFailure: The resident does not end.
    """
    folder = place.folder
    record = read_record(folder.record)
    running = record is not None and record.process is not None
    if record is not None and (process := record.process) is not None:
        process.send_signal(signal.SIGTERM if keep_nodes else signal.SIGINT)
        if not _ends(record, _STOP_S):
            raise NodeFailure(
                "The resident does not end.",
                why=f"Process {record.pid} was asked to {_STOP_S:.0f} s ago.",
                hint=f"End it: kill -9 {record.pid}",
            )
    return running if keep_nodes else _end_left_nodes(folder.nodes) or running


def _end_left_nodes(folder: Path) -> bool:
    """End nodes that run without a resident, after their sessions; returns whether there were any."""
    records = [record for path in sorted(folder.glob("*.json")) if (record := read_record(path)) is not None]
    left = [(record, process) for record in records if (process := record.process) is not None]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for _, process in left:
            with suppress(psutil.Error):
                process.send_signal(number)
        if all(_ends(record, _STOP_S) for record, _ in left):
            break
    return bool(left)


def _ends(record: NodeRecord, seconds: float) -> bool:
    """Wait for the end of a process; returns whether it came in time."""
    until = time.monotonic() + seconds
    while record.process is not None:
        if time.monotonic() >= until:
            return False
        time.sleep(_LOOK_S)
    return True


def resident_log(place: ClusterPlace) -> str:
    """The log of a resident that runs in the background.

    Raises:
        UsageError: None has run there.
    """
    path = place.folder.log
    if not path.exists():
        raise UsageError(
            "No resident has run in the background on this machine.",
            why=f"{path} does not exist.",
            hint="Start one: shardhub resident start",
        )
    return path.read_text(encoding="utf-8", errors="replace")
