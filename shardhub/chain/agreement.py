"""Check that a chain's stages are parts of one model, although their machines may run several versions of mlx-lm."""

from __future__ import annotations

from collections.abc import Sequence

from shardhub.chain.stage_link import StageLink
from shardhub.errors import HandshakeError
from shardhub.protocol import COMPUTATION, PROVEN_ANEW, KvQuantization, StageFacts


def check_one_model(links: Sequence[StageLink]) -> None:
    """Check that all stages of a chain compute parts of one model.

    Stages whose graph is the published one fit together, whatever their versions of mlx-lm. A stage that had to be
    proven anew is right under its own mlx-lm only, and fits only beside stages that run the same version.

    Raises:
        HandshakeError: A stage that was proven anew is beside another version of mlx-lm, or stages quantise K and V
            differently.
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
            why=f"{anew.name} has mlx-lm {version}, with which its stage's graph differs from the published one; "
            f"{other.name} has mlx-lm {other.host.get('mlx_lm', 'unknown')}.",
            hint="Install the same version of mlx-lm on all machines, preferably the one that the pipeline's card "
            "names.",
        )


def check_one_kv(stages: Sequence[tuple[str, StageFacts]]) -> None:
    """Check that all stages keep K and V in the same form.

    Args:
        stages: Name of each stage's server, and its facts.

    Raises:
        HandshakeError: Two stages differ.
    """
    for name, facts in stages[1:]:
        first, known = stages[0]
        if facts.kv != known.kv:
            raise HandshakeError(
                f"{first} and {name} keep K and V in different forms.",
                why=f"{first} uses {_form(known.kv)}, and {name} uses {_form(facts.kv)}.",
                hint="Start all nodes of a pipeline with the same `kv_bits` and `kv_group_size`.",
            )


def _form(kv: KvQuantization | None) -> str:
    return f"{kv.bits} bits in groups of {kv.group_size}" if kv else "the model's dtype"
