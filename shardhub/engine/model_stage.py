"""A loaded model's stage, as an engine runs it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np

from shardhub.errors import ProofExceeded
from shardhub.model import batching
from shardhub.model.load import LoadedStage
from shardhub.model.memory import release_unused
from shardhub.model.microbatch import advance, to_wire
from shardhub.model.session import Session
from shardhub.model.stage import Stage, StageCache
from shardhub.model.trial import Trial
from shardhub.parameters import SamplingParameters

log = logging.getLogger(__name__)

# Prefill chunk and rows of the warm-up, so that MLX has compiled its kernels before the first request.
_WARM_CHUNK = 8
_WARM_ROWS = 2


class ModelStage:
    """A `RunnableStage` whose layers run in MLX."""

    def __init__(self, loaded: LoadedStage) -> None:
        self._stage = loaded.stage
        self.advance = partial(advance, loaded.stage)
        self.facts = loaded.facts
        self.is_published = loaded.is_published
        self.batch_refusal = loaded.batch_refusal
        self.weight_bytes = loaded.weight_bytes
        self.context = loaded.context
        self.kv_budget_bytes = loaded.kv_budget_bytes
        self.kv_bytes = loaded.kv_bytes
        self.rewind_limit = loaded.rewind_limit

    def new_session(self, *, context: int, parameters: SamplingParameters) -> Session:
        """Make an empty session."""
        return Session(self._stage, context=context, parameters=parameters)


def warm_up(stage: Stage, trial: Trial, *, max_rows: int) -> None:
    """Run chunks and steps, alone and batched, so that kernels are compiled before the node reports ready.

    Raises:
        ProofExceeded: The first stage gives NaN or infinite values for real ids.
    """
    rows = [_WarmRow(stage, trial) for _ in range(min(_WARM_ROWS, max_rows))]
    for row in rows:
        for length in (_WARM_CHUNK, 1):
            _warm_step(stage, trial, [row], row.before, length)
    if len(rows) > 1:
        before = [row.before for row in rows if row.before is not None]
        _warm_step(stage, trial, rows, batching.merge(before) if before else None, 1)
    del rows, row
    release_unused()


class _WarmRow:
    """A session for the warm-up, and the state of the layers before the stage."""

    def __init__(self, stage: Stage, trial: Trial) -> None:
        self.session = Session(stage, context=_WARM_CHUNK + 3, parameters=SamplingParameters())
        self.before = trial.new_cache()


def _warm_step(stage: Stage, trial: Trial, rows: Sequence[_WarmRow], before: StageCache | None, length: int) -> None:
    position = rows[0].session.position
    chunks = [trial.chunk(length, position + length) for _ in rows]
    ids, leaves = trial.step(chunks, before, position=position)
    sessions = [row.session for row in rows]
    incoming = {name: to_wire(leaf) for name, leaf in leaves.items()}
    try:
        advance(stage, sessions, np.array(ids), incoming, draw=[length == 1] * len(rows))
    except ProofExceeded as error:
        if stage.start == 0:
            raise
        # Inputs of later stages are made up: only the first real step shows, before a token is drawn from it.
        log.warning("the warm-up failed on its made-up inputs: %s", error)
