"""Whether the stages of a chain are parts of one model, although their machines have several versions of mlx-lm."""

from __future__ import annotations

from collections.abc import Sequence

from shardhub.chain.stage_link import StageLink
from shardhub.errors import HandshakeError
from shardhub.protocol import COMPUTATION, PROVEN_ANEW, KvQuantization, StageFacts


def check_one_model(links: Sequence[StageLink]) -> None:
    """Refuse a chain whose stages compute parts of different models.

    A stage whose graph is the published one fits beside every other such stage, whatever the versions. One that had to
    be proven anew is right under its own mlx-lm, and fits only beside stages that run the same.

    Raises:
        HandshakeError: A stage that was proven anew stands beside another version of mlx-lm, or some quantise K and V
            otherwise than others.
    """
    check_one_kv([(link.name, link.facts) for link in links])
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


def check_one_kv(stages: Sequence[tuple[str, StageFacts]]) -> None:
    """Refuse stages that keep K and V in different forms.

    Args:
        stages: Who serves each, and what it says of itself.

    Raises:
        HandshakeError: Two differ.
    """
    for name, facts in stages[1:]:
        first, known = stages[0]
        if facts.kv != known.kv:
            raise HandshakeError(
                f"{first} and {name} keep K and V in different forms.",
                why=f"{first} has {_form(known.kv)}, {name} {_form(facts.kv)}.",
                hint="Start all nodes of a pipeline with the same `kv_bits` and `kv_group_size`.",
            )


def _form(kv: KvQuantization | None) -> str:
    return f"{kv.bits} bits in groups of {kv.group_size}" if kv else "the model's dtype"
