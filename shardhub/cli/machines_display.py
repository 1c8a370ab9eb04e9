"""The progress of all machines at once: a table on a terminal, lines where something changes into a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shardhub.cli.terminal import clear_status, note, show_status
from shardhub.sizes import size_text

if TYPE_CHECKING:
    from rich.table import Table

    from shardhub.usecases.deployed import MachineProgress

_BAR_WIDTH = 24
_DOING_WIDTH = 60
_TENTHS = 10


class MachinesDisplay:
    """Shows how far machines are, on stderr."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._reported: dict[str, tuple[str, int]] = {}

    def __call__(self, machines: Sequence[MachineProgress]) -> None:
        """Show how far they are now."""
        if self._is_terminal:
            show_status(_table(machines))
            return
        for machine in machines:
            tenths = machine.done_bytes * _TENTHS // max(1, machine.total_bytes)
            state = (machine.doing.partition(" ")[0], tenths)
            if self._reported.get(machine.machine) != state:
                self._reported[machine.machine] = state
                note(line(machine))

    def close(self) -> None:
        """End the display."""
        if self._is_terminal:
            clear_status()


def line(machine: MachineProgress) -> str:
    """How far a machine is, in a line."""
    share = f" ({machine.done_bytes / machine.total_bytes:.0%})" if machine.total_bytes else ""
    return f"{machine.machine}: layers {_layers(machine)}: {machine.doing}{share}"


def _table(machines: Sequence[MachineProgress]) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for machine in machines:
        total = machine.total_bytes
        bar = ProgressBar(total=max(1, total), completed=machine.done_bytes, width=_BAR_WIDTH)
        table.add_row(
            machine.machine,
            f"layers {_layers(machine)}",
            bar if total else Text(""),
            f"{size_text(machine.done_bytes)} of {size_text(total)}" if total else "",
            Text(machine.doing[-_DOING_WIDTH:], style="green" if machine.is_ready else ""),
        )
    return table


def _layers(machine: MachineProgress) -> str:
    first, last = machine.layers
    return f"{first}-{last}" if last > first else str(first)
