"""What an engine needs of a stage: small enough that a simulation runs engines over stages without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from shardhub.model.drawn import Advanced
from shardhub.model.stage_session import StageSession
from shardhub.parameters import SamplingParameters
from shardhub.protocol import StageFacts
from shardhub.tensors import RawTensor


class RunnableStage(Protocol):
    """A stage that runs steps; its methods are called from the engine's compute only."""

    @property
    def facts(self) -> StageFacts:
        """What it reports about itself."""

    @property
    def is_published(self) -> bool:
        """Whether its graph is the published one; otherwise it was proven anew."""

    @property
    def batch_refusal(self) -> str | None:
        """Why sessions cannot run side by side; None if they can."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of its own tensors."""

    @property
    def context(self) -> int:
        """Most positions of a session."""

    @property
    def kv_budget_bytes(self) -> int:
        """Bytes for KV caches."""

    @property
    def rewind_limit(self) -> int:
        """Most positions from which a session can go back."""

    def kv_bytes(self, num_positions: int, /) -> int:
        """Bytes of the KV budget that a session takes."""

    def new_session(self, *, context: int, parameters: SamplingParameters) -> StageSession:
        """Make an empty session."""

    def advance(
        self,
        sessions: Sequence[Any],
        ids: np.ndarray[Any, np.dtype[np.int32]],
        incoming: Mapping[str, RawTensor],
        *,
        draw: Sequence[bool],
        verify: bool = False,
        masks: Sequence[bytes | None] = (),
        targets: Sequence[Sequence[int]] = (),
    ) -> Advanced:
        """Run one chunk of each session; see `shardhub.model.microbatch.advance`.

        Args:
            sessions: B sessions that `new_session` or a fork of one made; their ids grow by L.
            ids: Token ids (B, L).
        """
