"""`shardhub machines`: the machines of the cluster, what each is and serves, and how fast they reach each other."""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shardhub.cli.flags import Output
from shardhub.cli.terminal import note
from shardhub.sizes import size_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shardhub.resident.machine import MachineState, MeasuredLink
    from shardhub.usecases.cluster_view import ClusterMachine

# A table into a pipe is as wide as it needs to be.
_PIPE_WIDTH = 200
_COLUMNS = ("machine", "chip", "memory", "for nodes", "serves", "shardhub", "link", "seen")
_DAY_S = 86_400


def machines(output: Output) -> int:
    """List the cluster's machines, those that do not answer too; exit code 1 if one does not."""
    from shardhub.usecases.cluster import open_cluster

    with open_cluster() as cluster:
        own, listed = cluster.own(), cluster.machines()
    if output.as_json:
        print(json.dumps([_record(machine, own) for machine in listed]))
    else:
        _print(_table(listed, own, now=time.time()))
        for text in _remarks(listed, own):
            note(text)
    return 0 if all(machine.is_reachable for machine in listed) else 1


def _table(listed: Sequence[ClusterMachine], own: MachineState, *, now: float) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, no_wrap=column not in ("chip", "serves"), overflow="fold")
    for machine in listed:
        style = "" if machine.is_reachable else "red"
        table.add_row(*map(Text, _cells(machine, own, now=now)), style=style)
    return table


def _cells(machine: ClusterMachine, own: MachineState, *, now: float) -> list[str]:
    facts = machine.facts
    seen = "answers" if machine.is_reachable else _ago(machine.seen_at, now)
    name = f"{machine.name} (this one)" if machine.is_own else machine.name
    if facts is None:
        return [name, "", "", "", "", "", "", seen]
    link = _link(machine, own)
    return [
        name,
        facts.chip,
        size_text(facts.memory_bytes),
        size_text(facts.budget_bytes) if machine.is_reachable else "",
        _serves(machine),
        facts.shardhub,
        "" if link is None else f"{link.round_trip_s * 1000:.2g} ms, {link.bytes_per_s / 1e6:.3g} MB/s",
        seen,
    ]


def _serves(machine: ClusterMachine) -> str:
    """What a machine serves, and how far that is."""
    parts = []
    for node in machine.nodes:
        state = "" if node.is_ready else f" ({node.doing or node.phase.value})"
        parts.append(f"{node.pipeline} {node.start}-{node.stop - 1}{state}")
    return ", ".join(parts) or "-"


def _link(machine: ClusterMachine, own: MachineState) -> MeasuredLink | None:
    """What this machine measured to another one."""
    return next((link for link in own.facts.links if link.machine == machine.name), None)


def _ago(seen_at: float, now: float) -> str:
    if not seen_at:
        return "never"
    seconds = max(0.0, now - seen_at)
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min ago"
    if seconds < 2 * _DAY_S:
        return f"{seconds / 3600:.0f} h ago"
    return f"{dt.datetime.fromtimestamp(seen_at):%F}"


def _remarks(listed: Sequence[ClusterMachine], own: MachineState) -> list[str]:
    """What a person should know: machines that do not answer, and why, and what residents remark."""
    lost = [
        f"{machine.name} does not answer{f' at {machine.address}' if machine.address else ''}. Is it on, and does its "
        "resident run there (shardhub resident status)?"
        for machine in listed
        if not machine.is_reachable
    ]
    alone = ["No other machine has joined. Make a line for others: shardhub cluster invite"] if len(listed) == 1 else []
    return [*own.remarks, *lost, *alone]


def _record(machine: ClusterMachine, own: MachineState) -> dict[str, Any]:
    link = _link(machine, own)
    return {
        "name": machine.name,
        "own": machine.is_own,
        "reachable": machine.is_reachable,
        "seen_at": machine.seen_at,
        "address": machine.address,
        "trouble": "" if machine.known is None else machine.known.trouble,
        "facts": None if machine.facts is None else machine.facts.model_dump(mode="json"),
        "nodes": [node.model_dump(mode="json") for node in machine.nodes],
        "link": None if link is None else link.model_dump(mode="json"),
    }


def _print(table: RenderableType) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False) if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().rstrip().splitlines()))
