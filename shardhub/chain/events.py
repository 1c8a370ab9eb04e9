"""What happened to a chain, for people."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to the chain, for people.

    Attributes:
        kind: `lost`, `back`, `joined`, `refused`, `recovered`, `slept` or `gave-up`.
        text: In a sentence.
        at: Seconds since the epoch.
    """

    kind: str
    text: str
    at: float = field(default_factory=time.time)
