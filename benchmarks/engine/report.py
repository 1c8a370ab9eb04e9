"""A benchmark's figures: medians with their spread, and the targets beside them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure, measured several times.

    Attributes:
        unit: Of the values; ratios have none.
        at_least, at_most: What the median should be.
    """

    name: str
    values: Sequence[float]
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def is_met(self) -> bool | None:
        """Whether the median is what it should be; None where there is no target."""
        if self.at_least is not None:
            return self.median >= self.at_least
        if self.at_most is not None:
            return self.median <= self.at_most
        return None

    def record(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": round(self.median, 6),
            "min": round(min(self.values), 6),
            "max": round(max(self.values), 6),
            "num": len(self.values),
            "at_least": self.at_least,
            "at_most": self.at_most,
            "met": self.is_met,
        }

    def line(self, width: int) -> str:
        """As a line of the table."""
        cells = [number(value) for value in (self.median, min(self.values), max(self.values))]
        target = ""
        if self.at_least is not None:
            target = f">= {self.at_least:g}"
        elif self.at_most is not None:
            target = f"<= {self.at_most:g}"
        met = {None: "", True: "met", False: "NOT MET"}[self.is_met]
        row = f"{self.name:<{width}} " + " ".join(f"{cell:>9}" for cell in cells)
        return f"{row} {len(self.values):>3}  {self.unit:<9} {target:<9} {met}".rstrip()


class Report:
    """What one benchmark found.

    Attributes:
        settings: How it was run.
        machines: Facts of each kind of process: versions, chip, BLAS.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.settings: dict[str, Any] = {}
        self.machines: dict[str, dict[str, str]] = {}
        self.figures: list[Figure] = []
        self.notes: list[str] = []
        self._loads = [os.getloadavg()[0]]

    def add(
        self,
        name: str,
        values: Sequence[float],
        unit: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Add a figure, and show it on stderr as soon as it is known."""
        figure = Figure(name=name, values=values, unit=unit, at_least=at_least, at_most=at_most)
        self.figures.append(figure)
        say(figure.line(len(name)))

    def note(self, text: str) -> None:
        """Add a sentence that belongs to the figures."""
        self.notes.append(text)
        say(text)

    def print(self, *, as_json: bool) -> None:
        """Print all of it on stdout."""
        self._loads.append(os.getloadavg()[0])
        if as_json:
            print(json.dumps(self.record()))
            return
        width = max([len("figure"), *(len(figure.name) for figure in self.figures)])
        print(f"{self.title}")
        print(", ".join(f"{key} {value}" for key, value in self.settings.items()))
        for name, facts in self.machines.items():
            print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
        print(f"cores {num_cores()}, load before and after {self._loads[0]:.1f}, {self._loads[-1]:.1f}\n")
        print(f"{'figure':<{width}} {'median':>9} {'min':>9} {'max':>9} {'n':>3}  {'unit':<9} target")
        for figure in self.figures:
            print(figure.line(width))
        for note in self.notes:
            print(note)

    def record(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {
            "benchmark": self.title,
            "settings": self.settings,
            "machines": self.machines,
            "system": f"{platform.system()} {platform.release()}",
            "cores": num_cores(),
            "load": [round(load, 2) for load in self._loads],
            "figures": [figure.record() for figure in self.figures],
            "notes": self.notes,
        }


def number(value: float) -> str:
    """A number with about four digits."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def say(text: str) -> None:
    """Tell what is going on."""
    print(text, file=sys.stderr, flush=True)
