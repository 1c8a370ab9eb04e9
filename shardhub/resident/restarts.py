"""When a node that has ended is started again: after growing pauses, and not where that cannot help."""

from __future__ import annotations

from shardhub.errors import (
    AccessError,
    AddressError,
    Conflict,
    IntegrityError,
    NotFound,
    ShardhubError,
    UnsupportedModel,
    UsageError,
)

_FIRST_PAUSE_S, _LAST_PAUSE_S = 1.0, 60.0
# A node that served for this long has started well: if it ends, that is something new.
_WELL_S = 60.0
# Errors that stay until a person changes something, except those of the second line, which pass.
_STAYING = (UsageError, UnsupportedModel, IntegrityError, AccessError, NotFound)
_PASSING = (AddressError, Conflict)


def can_mend(error: ShardhubError | None) -> bool:
    """Whether a start that ended with an error may succeed later, though nobody does anything; None is a crash."""
    return error is None or isinstance(error, _PASSING) or not isinstance(error, _STAYING)


class Restarts:
    """The pauses between one node's starts."""

    def __init__(self) -> None:
        self._pause_s = _FIRST_PAUSE_S

    def ended(self, error: ShardhubError | None, *, served_s: float) -> float | None:
        """Decide when to start the node again.

        Args:
            error: What it ended with; None if it crashed or was killed.
            served_s: How long it had been ready.

        Returns:
            Seconds until the next start; None if it would not help.
        """
        if not can_mend(error):
            return None
        if served_s >= _WELL_S:
            self._pause_s = _FIRST_PAUSE_S
        pause_s = self._pause_s
        self._pause_s = min(_LAST_PAUSE_S, 2 * pause_s)
        return pause_s
