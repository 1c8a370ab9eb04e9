"""When a node that has ended is started again."""

from __future__ import annotations

import pytest

from shardhub.errors import (
    OUTCOMES,
    AddressError,
    Conflict,
    DigestMismatch,
    DiskFull,
    DoesNotFit,
    HubUnreachable,
    IdentityError,
    NotFound,
    UnsupportedModel,
    UsageError,
)
from shardhub.resident.restarts import Restarts, can_mend


def test_pauses_grow_until_it_serves_well():
    """A node that ends again and again is started less and less often; one that served a while is not punished."""
    restarts = Restarts()
    assert [restarts.ended(None, served_s=1.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert restarts.ended(None, served_s=61.0) == 1
    assert restarts.ended(None, served_s=0.0) == 2


@pytest.mark.parametrize("kind", [UsageError, UnsupportedModel, DigestMismatch, IdentityError, NotFound])
def test_what_stays_is_not_tried_again(kind):
    """Errors that only a person can change end the attempts."""
    assert Restarts().ended(kind("It cannot be."), served_s=0.0) is None


@pytest.mark.parametrize("kind", [HubUnreachable, DiskFull, DoesNotFit, AddressError, Conflict])
def test_what_passes_is_tried_again(kind):
    """A network, a disk, memory or a port that is in use may be better in a while."""
    assert Restarts().ended(kind("Not now."), served_s=0.0) == 1


def test_every_error_is_one_or_the_other():
    """The decision is made for every error there is, and a crash is tried again."""
    assert can_mend(None)
    assert {can_mend(kind("It happened.")) for kind in OUTCOMES} == {True, False}
