"""The make-up of a running chain: who serves which stages, and how much runs at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardhub.chain.assignment import stages_of
from shardhub.chain.chain import Chain
from shardhub.chain.paths import Paths
from shardhub.chain.place import Place
from shardhub.manifest import Manifest
from shardhub.protocol import HopSpeed


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedStages:
    """Where stages `[first, last]` of the manifest run now.

    Attributes:
        at: Address of the node, or "this process".
        host: Facts about the machine.
    """

    first: int
    last: int
    at: str
    host: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The capacity of a chain.

    Attributes:
        max_context: Most positions of a prompt and its answer.
        max_sessions: Concurrent requests: sessions of the stage that holds the fewest.
        busy_rows: Concurrent requests that keep every stage busy with full steps.
    """

    max_context: int
    max_sessions: int
    busy_rows: int


def served_stages(manifest: Manifest, paths: Paths) -> tuple[ServedStages, ...]:
    """Who serves which stages: in stage order, replicas side by side; later additions come last."""
    return tuple(_served(manifest, place) for place in paths.in_use)


def capacity_of(chain: Chain) -> Capacity:
    """Capacity of a chain with all its nodes live."""
    stages = chain.paths.stages
    max_sessions = min(sum(place.link.limits.max_sessions for place in stage) for stage in stages)
    busy_rows = min(chain.max_rows * len(stages), max_sessions)
    return Capacity(max_context=chain.max_context, max_sessions=max_sessions, busy_rows=busy_rows)


def describe_stages(manifest: Manifest, paths: Paths) -> list[dict[str, object]]:
    """Where each stage runs, and the measured speed of the hop to the next, as JSON-able data."""
    rows: list[dict[str, object]] = []
    onwards = dict(zip(paths.places, paths.hops, strict=True))
    for place in sorted(paths.in_use, key=lambda place: place.link.facts.start):
        served, facts = _served(manifest, place), place.link.facts
        row: dict[str, object] = {
            "stages": list(range(served.first, served.last + 1)),
            "layers": [facts.start, facts.stop],
            "at": served.at,
            "next": onwards[place].kind.value,
        }
        if (speed := _speed_from(paths, place)) is not None:
            row |= {"round_trip_s": round(speed.round_trip_s, 6), "bytes_per_s": round(speed.bytes_per_s)}
        rows.append(row)
    return rows


def chain_line(paths: Paths) -> str:
    """Describe a chain in one line: layers, addresses, and the speeds measured between neighbours."""
    text = ""
    for number, stage in enumerate(paths.stages):
        if number:
            speed = _speed_from(paths, paths.stages[number - 1][0])
            text += (
                " --by this process--> "
                if speed is None
                else f" --{speed.round_trip_s * 1000:.1f} ms, {speed.bytes_per_s / 1e6:.0f} MB/s--> "
            )
        facts = stage[0].link.facts
        text += f"layers {facts.start} to {facts.stop - 1} at {' and '.join(place.link.name for place in stage)}"
    return text


def _served(manifest: Manifest, place: Place) -> ServedStages:
    link = place.link
    stages = stages_of(manifest, link.facts)
    return ServedStages(first=stages.first, last=stages.last, at=link.name, host=link.host)


def _speed_from(paths: Paths, place: Place) -> HopSpeed | None:
    """Measured speed of the hop from a place to the first place of the next stage."""
    return next((speed for (here, _), speed in paths.speeds.items() if here is place), None)
