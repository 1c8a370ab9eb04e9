"""The error tree and its table of outcomes are complete."""

from __future__ import annotations

import grpc
import pytest

from shardhub import errors
from shardhub.errors import OUTCOMES, NodeFailure, ShardhubError, by_name, outcome

EXIT_CODES = {1, 2, 3, 4, 5, 6}


def below(kind: type[ShardhubError]) -> set[type[ShardhubError]]:
    return {kind}.union(*(below(child) for child in kind.__subclasses__()))


KINDS = sorted((kind for kind in below(ShardhubError) if kind.__module__ == errors.__name__), key=lambda k: k.__name__)


def test_every_error_has_an_outcome() -> None:
    """Each class of the tree has a row of its own, and every row belongs to a class."""
    assert set(OUTCOMES) == set(KINDS)
    assert len(KINDS) > 25


def test_every_error_of_the_package_is_in_the_tree() -> None:
    """No subclass of ShardhubError is defined outside errors.py, where the table would miss it."""
    assert below(ShardhubError) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_outcome_is_possible_and_documented(kind: type[ShardhubError]) -> None:
    """Each outcome has a real gRPC status, an HTTP error status and a documented exit code; the tree has its class."""
    row = outcome(kind("what"))
    assert row.grpc in grpc.StatusCode.__members__
    assert row.grpc != "OK"
    assert 400 <= row.http <= 599
    assert row.exit in EXIT_CODES
    documented = errors.Outcome.__doc__ or ""
    assert f"{row.exit} " in documented
    assert f" {kind.__name__} " in (errors.__doc__ or "").replace("\n", " \n")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_error_is_rebuilt_by_name(kind: type[ShardhubError]) -> None:
    """A class name reported by a peer becomes the same class with the same three texts."""
    rebuilt = by_name(kind.__name__, "what", why="why", hint="hint")
    assert type(rebuilt) is kind
    assert (rebuilt.what, rebuilt.why, rebuilt.hint) == ("what", "why", "hint")
    assert str(rebuilt) == "what why hint"


def test_unknown_name_becomes_a_node_failure() -> None:
    """A peer can choose only classes of the tree."""
    for name in ("KeyboardInterrupt", "object", "", "ShardhubError.__init__"):
        assert type(by_name(name, "what")) is NodeFailure


def test_children_keep_their_parents_exit_code() -> None:
    """A member of a family has the family's exit code, except proof errors, which count as integrity."""
    for kind in KINDS:
        if kind not in (ShardhubError, errors.ProofFailed) and kind.__base__ is not ShardhubError:
            assert issubclass(kind.__base__, ShardhubError)
            assert OUTCOMES[kind].exit == OUTCOMES[kind.__base__].exit, kind
