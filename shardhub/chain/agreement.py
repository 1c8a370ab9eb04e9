"""Whether the stages of a chain are parts of one model, although their machines have several versions of mlx-lm."""

from __future__ import annotations

from collections.abc import Sequence

from shardhub.chain.links import StageLink
from shardhub.errors import HandshakeError
from shardhub.protocol import COMPUTATION, PROVEN_ANEW


def check_one_model(links: Sequence[StageLink]) -> None:
    """Refuse a chain whose stages compute parts of different models.

    A stage whose graph is the published one fits beside every other such stage, whatever the versions. One that had to
    be proven anew is right under its own mlx-lm, and fits only beside stages that run the same.

    Raises:
        HandshakeError: A stage that was proven anew stands beside another version of mlx-lm, or some quantise K and V
            otherwise than others.
    """
    _check_one_kv(links)
    anew = next((link for link in links if link.host.get(COMPUTATION) == PROVEN_ANEW), None)
    if anew is None:
        return
    version = anew.host.get("mlx_lm", "unknown")
    other = next((link for link in links if link.host.get("mlx_lm", "unknown") != version), None)
    if other is not None:
        raise HandshakeError(
            f"{anew.name} and {other.name} compute parts of different models.",
            why=f"With mlx-lm {version}, which {anew.name} has, its stage's graph is not the published one; "
            f"{other.name} has mlx-lm {other.host.get('mlx_lm', 'unknown')}.",
            hint="Install one version of mlx-lm on all machines, best the one the pipeline's card names.",
        )


def _check_one_kv(links: Sequence[StageLink]) -> None:
    first = links[0]
    other = next((link for link in links if link.facts.kv != first.facts.kv), None)
    if other is not None:
        raise HandshakeError(
            f"{first.name} and {other.name} keep K and V in different forms.",
            why=f"{first.name} has {_kv(first)}, {other.name} {_kv(other)}.",
            hint="Start all nodes of a pipeline with the same --kv-bits and --kv-group-size.",
        )


def _kv(link: StageLink) -> str:
    kv = link.facts.kv
    return f"{kv.bits} bits in groups of {kv.group_size}" if kv else "the model's dtype"
