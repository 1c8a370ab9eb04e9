"""Plots of throughput and latency against concurrency, drawn by matplotlib if it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shardhub.cli.terminal import note
from shardhub.errors import UsageError

_SUFFIXES = (".png", ".svg")


def check_plot(path: Path) -> bool:
    """Check whether a plot can be drawn, before anything is measured.

    Raises:
        UsageError: The file is neither a PNG nor an SVG, or its folder does not exist.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"--plot {path} is neither a PNG nor an SVG.", hint="Name it FILE.png or FILE.svg.")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: the folder {path.parent} does not exist.", hint="Create it first.")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        note(f"{path} was not drawn, because matplotlib is not installed. Try: pip install 'shardhub[bench]'")
        return False
    return True


def plot_levels(levels: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Draw levels of concurrency, as `bench` records them, into a PNG or SVG.

    Raises:
        UsageError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 7.0), layout="constrained")
    figure.suptitle(title)
    throughput, between, first = figure.subplots(3, 1, sharex=True)
    at = [level["concurrency"] for level in levels]
    throughput.plot(at, [level["tokens_per_s"] for level in levels], marker="o", label="all requests")
    throughput.plot(at, [level["request_tokens_per_s"] for level in levels], marker="s", label="one request, decode")
    throughput.set_ylabel("tokens/s")
    for axis, what, label in (
        (between, "inter_token_s", "between tokens, ms"),
        (first, "first_token_s", "to first, ms"),
    ):
        for name in levels[0][what]:
            axis.plot(at, [level[what][name] * 1000 for level in levels], marker="o", label=name)
        axis.set_ylabel(label)
    for axis in (throughput, between, first):
        axis.set_ylim(bottom=0)
        axis.grid(visible=True, alpha=0.3)
        axis.legend()
    first.set_xscale("log", base=2)
    first.set_xticks(at, [str(value) for value in at])
    first.set_xlabel("concurrent requests")
    try:
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"--plot {path} cannot be written.", why=f"{error.strerror or error}.") from error
