"""How often residents speak and measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Times in seconds.

    Attributes:
        every_s: Between two introductions.
        again_s: Until a machine that does not answer, or a seed, is called again.
        measure_s: Between two measurements of a link.
        payloads_s: How long large messages are sent to measure a link.
    """

    every_s: float = 3.0
    again_s: float = 3.0
    measure_s: float = 600.0
    payloads_s: float = 0.5


USUAL_PACE = Pace()
