"""Parity by numbers: comparing the chain of stages with upstream's forward on the whole model, over the same arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from shardhub.checkpoint.checkpoint import Checkpoint, verify_weight_file
from shardhub.checkpoint.header import read_header
from shardhub.errors import UnsupportedModel, WeightFileError
from shardhub.model import poison, taps
from shardhub.model.anatomy import Anatomy
from shardhub.model.build import Blueprint, instantiate, sanitize
from shardhub.model.lazily import forward, make_cache
from shardhub.model.proof import StageCut
from shardhub.model.quantised import read_arrays
from shardhub.model.sampling import draw_key, sample
from shardhub.model.stage import Stage, cache_arrays
from shardhub.parameters import SamplingParameters
from shardhub.parity import CHUNK, NUM_TOKENS, PROMPT_LENGTHS, fixed_prompt
from shardhub.shard import Shard
from shardhub.splitting.contents import ModelContents

# Share of the budget kept free for KV caches and the buffers of a chunk.
_HEADROOM = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTensors:
    """A stage of the chain: its cut, and the names of the tensors that it may use."""

    cut: StageCut
    tensors: Collection[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The measured differences; see `manifest.Parity`.

    Attributes:
        tokens: Ids that the reference decoded, by prompt.
    """

    vocab_size: int
    tokens: tuple[tuple[int, ...], ...]
    tokens_equal: int
    max_abs_logit_difference: float
    num_nan_steps: int


def fits(size_bytes: int, budget_bytes: int) -> bool:
    """Whether a model of this size can be compared within a budget: stages and whole model share its arrays."""
    return size_bytes <= budget_bytes * (1 - _HEADROOM)


def checkpoint_weights(checkpoint: Checkpoint, contents: ModelContents) -> dict[str, mx.array]:
    """Load the whole model's tensors by final name, lazily: each is read on first use.

    Tensors that are not copied unchanged come from upstream's own sanitize, as when mlx-lm loads the model.

    Those of a checkpoint that is quantised while it is read are computed now. They stay in memory until they are
    written, so that its source is read once.

    Args:
        checkpoint: A checkpoint in a folder on this disk, or one that is quantised while it is read.
        contents: The contents of the model.

    Raises:
        WeightFileError: A file is malformed or changed since its header was read; MLX read none of its bytes.
    """
    if checkpoint.is_virtual:
        arrays = read_arrays(checkpoint, set(contents.stored_names.values()), keep=True)
        return {final: arrays[name] for final, name in contents.stored_names.items()}
    stored: dict[str, mx.array] = {}
    for name, known in checkpoint.files.items():
        path = checkpoint.folder / name
        header = read_header(path)  # checked by the reference reader too: MLX's own validates nothing
        if (header.size_bytes, header.version, header.digest) != (known.size_bytes, known.version, known.digest):
            raise WeightFileError(
                f"{path} changed since its header was read.",
                why=f"The sha256 of its header was {known.digest[:16]}... then, and is {header.digest[:16]}... now.",
                hint="Wait until no process writes to the model, then start again.",
            )
        stored.update(_load(str(path)))
    if contents.computed is None:
        return {final: stored[name] for final, name in contents.stored_names.items()}
    clean = sanitize(instantiate(checkpoint.config), stored)
    return {name: clean[name] for name in (*contents.stored_names, *contents.computed.specs)}


def shard_weights(shards: Sequence[Shard], progress: Callable[[str], None] = lambda _: None) -> dict[str, mx.array]:
    """Load the tensors of all these shards by final name, lazily, after every byte is checked.

    Raises:
        IntegrityError: A weight file differs from the published one; MLX read none of its bytes.
    """
    weights: dict[str, mx.array] = {}
    files = [(shard, file) for shard in shards for file in shard.stage.weight_files]
    for done, (shard, file) in enumerate(files):
        progress(f"verifying weight files: {done} of {len(files)}")
        verify_weight_file(shard.folder / file.name, file, shard.tensors)
        weights.update(_load(str(shard.folder / file.name)))
    return weights


def compare(
    blueprint: Blueprint,
    anatomy: Anatomy,
    chain: Sequence[StageTensors],
    weights: Mapping[str, mx.array],
    *,
    num_tokens: int = NUM_TOKENS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Compare stages and whole model over the fixed prompts, greedily; both get the reference's ids in the same shapes.

    The arrays exist once: a stage's model object holds those of its own tensors, and placeholders for the others.

    Args:
        blueprint, anatomy: The whole model.
        chain: Its stages in order.
        weights: Every tensor by final name.
        num_tokens: Tokens to decode over all prompts.
        progress: Called with the number of tokens done and in all.

    Raises:
        UnsupportedModel: MLX cannot run the model here.
    """
    pair = _Pair(blueprint, anatomy, chain, weights)
    tokens: list[tuple[int, ...]] = []
    for index, length in enumerate(PROMPT_LENGTHS):
        left = num_tokens - sum(map(len, tokens))
        count = left if index == len(PROMPT_LENGTHS) - 1 else min(left, NUM_TOKENS // len(PROMPT_LENGTHS))
        if count < 1:
            break
        pair.begin()
        *head, last = fixed_prompt(index, length, pair.vocab_size)
        for at in range(0, len(head), CHUNK):
            pair.prefill(head[at : at + CHUNK])
        decoded: list[int] = []
        while len(decoded) < count:
            last = pair.decode(last)
            decoded.append(last)
            progress(sum(map(len, tokens)) + len(decoded), num_tokens)
        tokens.append(tuple(decoded))
    result = Comparison(
        vocab_size=pair.vocab_size,
        tokens=tuple(tokens),
        tokens_equal=pair.num_equal,
        max_abs_logit_difference=pair.difference,
        num_nan_steps=pair.num_nan,
    )
    del pair
    mx.clear_cache()
    return result


class _Pair:
    """The whole model and its stages over the same arrays, one sequence at a time."""

    def __init__(
        self,
        blueprint: Blueprint,
        anatomy: Anatomy,
        chain: Sequence[StageTensors],
        weights: Mapping[str, mx.array],
    ) -> None:
        self._whole = blueprint.build()
        self._whole.update(tree_unflatten(list(weights.items())))
        self._stages = []
        for stage in chain:
            model = blueprint.build(stand_in=poison.parameter)
            model.update(tree_unflatten([(name, weights[name]) for name in stage.tensors]))
            cut = stage.cut
            self._stages.append(Stage(model, anatomy, cut.start, cut.stop, cut.crossings_in, cut.crossings_out))
        self.vocab_size: int = forward(blueprint.build(), mx.zeros((1, 1), mx.int32), make_cache(self._whole)).shape[-1]
        self.num_equal = self.num_nan = 0
        self.difference = 0.0

    def begin(self) -> None:
        """Start a sequence at position 0."""
        self._cache = make_cache(self._whole)
        self._states = [stage.new_cache() for stage in self._stages]
        self._position = 0

    def prefill(self, ids: list[int]) -> None:
        """Run a chunk on both sides, without logits."""
        self._run_whole(ids, need_logits=False)
        self._run_chain(ids, need_logits=False)
        self._position += len(ids)
        mx.clear_cache()

    def decode(self, token: int) -> int:
        """Run one id on both sides, measure the difference of their logits, and return the reference's next token."""
        expected = self._run_whole([token], need_logits=True)
        logits = self._run_chain([token], need_logits=True)
        assert expected is not None and logits is not None  # noqa: PT018
        self._position += 1
        chosen = _greedy(expected)
        self.num_equal += _greedy(logits) == chosen
        expected, logits = expected.astype(mx.float32), logits.astype(mx.float32)
        self.num_nan += bool((mx.isnan(expected) | mx.isnan(logits)).any().item())
        # Equal infinities, and NaN on both sides, count as no difference; any other difference is finite, or the
        # largest float, as for NaN on one side.
        same = (expected == logits) | (mx.isnan(expected) & mx.isnan(logits))
        apart = mx.where(same, 0.0, mx.abs(expected - logits))
        largest = float(mx.where(mx.isnan(apart), mx.inf, apart).max().item())  # type: ignore[arg-type]
        self.difference = max(self.difference, min(largest, sys.float_info.max))
        return chosen

    def _run_whole(self, ids: list[int], *, need_logits: bool) -> mx.array | None:
        try:
            logits = forward(self._whole, mx.array([ids], mx.int32), self._cache)[0, -1]
            mx.eval(([logits] if need_logits else []) + cache_arrays(self._cache))
        except RuntimeError as error:  # this backend lacks an operation, such as half-precision experts on a CPU
            raise UnsupportedModel(
                "MLX cannot run this model on this machine.", why=f"{str(error).partition(chr(10))[0][:200]}."
            ) from error
        return logits if need_logits else None

    @poison.watching()
    def _run_chain(self, ids: list[int], *, need_logits: bool) -> mx.array | None:
        crossing: dict[str, taps.Leaf] | mx.array = {}
        for stage, state in zip(self._stages, self._states, strict=True):
            assert isinstance(crossing, dict)
            crossing = stage.run(
                mx.array([ids], mx.int32), state, crossing, position=self._position, need_logits=need_logits
            )
            outputs = list(crossing.values()) if isinstance(crossing, dict) else [crossing]
            leaves = [leaf for leaf in outputs if isinstance(leaf, mx.array)]
            mx.eval(leaves, cache_arrays((*state.owned, *state.ghosts)))
        return crossing[0, -1] if isinstance(crossing, mx.array) else None


def _greedy(logits: mx.array) -> int:
    """The token that a node's greedy sampling chooses from logits (V,)."""
    token, _ = sample(logits, (), SamplingParameters(), None, draw_key(0, 0, 0))
    chosen: Any = token.item()
    return int(chosen)


def _load(path: str) -> dict[str, mx.array]:
    arrays = mx.load(path, format="safetensors")
    assert isinstance(arrays, dict)
    return arrays
