"""Sequences side by side, extracted, trimmed and copied: chains do what the unsplit model does."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import pytest
from mlx_lm.models import cache as caches

from shardhub.errors import SessionNotRewindable, UnsupportedModel
from shardhub.model import batching
from shardhub.model.stage import StageCache, cache_arrays
from tests.architectures import abilities
from tests.architectures.matrix import CONFIGS, Chain, Specimen, Whole, difference, token_ids

pytestmark = pytest.mark.architectures

# Full and sliding attention with ghosts for both; one cache list a layer; recurrent and attention; recurrent alone;
# shared K and V; attention alone.
MODULES = ("llama", "deepseek_v32", "qwen3_next", "rwkv7", "gemma4_text", "qwen2")


def made(module: str, positions: tuple[int, ...] | None = None) -> tuple[Whole, Chain]:
    specimen = Specimen(CONFIGS[module])
    return Whole(specimen.model), specimen.chain(positions or specimen.thirds)


def prefilled(chain: Chain, *lengths: int) -> list[list[StageCache]]:
    """Caches of the chain's stages for sequences of these lengths."""
    states = []
    for length in lengths:
        state = chain.new_caches()
        chain.step(token_ids(1, length, seed=length), state, position=0)
        states.append(state)
    return states


@pytest.mark.parametrize("module", MODULES)
def test_batch_that_sequences_join_and_leave_is_exact(module) -> None:
    """Merge, extend, keep and extract give the unsplit model's logits, and those are each sequence's own."""
    answer = abilities.batch(*made(module))
    assert answer.supported, answer.note
    assert answer.exact


@pytest.mark.parametrize("module", ["qwen2", "llama", "deepseek_v32"])
def test_trimmed_caches_go_on_as_if_nothing_had_happened(module) -> None:
    """Running ahead and trimming leaves no trace in the logits, with one number for all rows and with one for each."""
    for ability in (abilities.trim, abilities.trim_rows):
        answer = ability(*made(module))
        assert answer.supported, answer.note
        assert answer.exact


@pytest.mark.parametrize("module", [*MODULES, "llama4", "deepseek_v41"])
def test_snapshot_goes_on_as_the_original_does(module) -> None:
    """A copy and its original both continue to the unsplit model's logits."""
    answer = abilities.snapshot(*made(module))
    assert answer.supported
    assert answer.exact


def test_merged_ghosts_have_an_offset_for_each_row() -> None:
    """Masks and rotations made from a ghost are right for every row of a batch."""
    _, chain = made("llama")
    merged = [batching.merge(same) for same in zip(*prefilled(chain, 9, 3), strict=True)]
    for cache in merged:
        assert cache.ghosts
        assert [ghost.offset.tolist() for ghost in cache.ghosts] == [[9, 3]] * len(cache.ghosts)
        assert all(any(ghost is entry for entry in cache.view) for ghost in cache.ghosts)
        assert len({id(entry) for entry in cache.view}) == len(cache.owned) + len(cache.ghosts)


def held(caches: Sequence[StageCache]) -> str:
    """All that caches hold, as text: ghosts hold NaN, which never compares equal."""
    return repr([[array.tolist() for array in cache_arrays(cache.view)] for cache in caches])


@pytest.mark.parametrize("module", ["llama", "qwen3_next"])
def test_operations_leave_the_caches_they_are_given_as_they_were(module) -> None:
    """Caches that were merged, extended or filtered can still be run, and give what they would have given."""
    specimen = Specimen(CONFIGS[module])
    chain = specimen.chain(specimen.thirds)
    (state,) = prefilled(chain, 6)
    (other,) = prefilled(chain, 9)
    pair = [batching.merge(same) for same in zip(state, other, strict=True)]
    before = held((*state, *pair))
    more = [batching.extend(cache, cache) for cache in pair]
    for cache in more:
        batching.keep(cache, [2, 0])
        batching.extract(cache, 3)
    chain.step(token_ids(4, 1), more, position=9)
    assert held((*state, *pair)) == before


def test_rows_are_kept_in_the_order_asked_for() -> None:
    """Rows can be reordered: each goes on with its own sequence."""
    _, chain = made("qwen2")
    merged = [batching.merge(same) for same in zip(*prefilled(chain, 9, 6), strict=True)]
    turned = [batching.keep(cache, [1, 0]) for cache in merged]
    ids = token_ids(2, 1)
    straight = chain.step(ids, merged, position=9)
    crossed = chain.step(mx.concatenate([ids[1:], ids[:1]]), turned, position=9)
    assert difference([crossed[1], crossed[0]], [straight[0], straight[1]]) == 0


@pytest.mark.parametrize(("module", "cache_class"), [("llama4", "ChunkedKVCache"), ("deepseek_v41", "LayerCache")])
def test_caches_without_a_batched_form_are_refused_by_name(module, cache_class) -> None:
    """A cache class that upstream cannot merge is named in the refusal, and nothing is merged."""
    _, chain = made(module)
    stages = list(zip(*prefilled(chain, 6, 9), strict=True))
    with pytest.raises(UnsupportedModel, match=cache_class):
        [batching.merge(same) for same in stages]


def test_window_that_keeps_its_first_positions_is_not_merged() -> None:
    """Upstream's merged form would drop the kept positions silently."""
    entry = caches.RotatingKVCache(max_size=8, keep=4)
    entry.update_and_fetch(mx.zeros((1, 1, 6, 1)), mx.zeros((1, 1, 6, 1)))
    cache = StageCache(view=[entry], owned=[entry], ghosts=[])
    with pytest.raises(UnsupportedModel, match="keeps its first positions"):
        batching.merge([cache, cache])


def test_single_sequence_is_not_taken_apart() -> None:
    """Extracting a row needs merged caches: a single sequence is refused."""
    _, chain = made("qwen2")
    (state,) = prefilled(chain, 6)
    for operation in (lambda cache: batching.keep(cache, [0]), lambda cache: batching.extract(cache, 0)):
        with pytest.raises(UnsupportedModel, match="KVCache"):
            operation(state[0])


def test_recurrent_state_is_not_trimmed() -> None:
    """A recurrent state cannot be trimmed, and the error names it."""
    _, chain = made("qwen3_next")
    (state,) = prefilled(chain, 6)
    assert not batching.is_trimmable(state[0])
    with pytest.raises(UnsupportedModel, match="ArraysCache"):
        batching.trim(state[0], 1)


@pytest.mark.parametrize(("module", "length"), [("llama", 7), ("llama4", 18)])
def test_window_that_moved_on_is_not_trimmed(module, length) -> None:
    """A window has dropped the positions that trimming would need, so trimming is refused."""
    _, chain = made(module)
    state = chain.new_caches()
    ids = token_ids(1, length)
    trimmable = []
    for position in range(length):
        chain.step(ids[:, position : position + 1], state, position=position)
        trimmable.append(batching.is_trimmable(state[0]))
    assert trimmable == sorted(trimmable, reverse=True)
    assert trimmable[0]
    assert not trimmable[-1]
    with pytest.raises(SessionNotRewindable, match="window"):
        batching.trim(state[0], 1)


def test_trim_past_the_start_is_refused() -> None:
    """No row can be trimmed below position 0: the shortest row sets the limit."""
    _, chain = made("qwen2")
    merged = batching.merge([state[0] for state in prefilled(chain, 9, 3)])
    with pytest.raises(SessionNotRewindable, match="It holds 3"):
        batching.trim(merged, 4)
    with pytest.raises(SessionNotRewindable, match="It holds 3"):
        batching.trim_rows(merged, [0, 4])
    assert batching.trim_rows(merged, [4, 0]).view[0].offset.tolist() == [5, 3]


def test_snapshot_shares_memory_until_it_is_written_to() -> None:
    """A copy of large caches costs nothing before the next step."""
    entry = caches.KVCache()
    entry.update_and_fetch(mx.zeros((1, 4, 4096, 64)), mx.zeros((1, 4, 4096, 64)))
    cache = StageCache(view=[entry], owned=[entry], ghosts=[])
    mx.eval(cache_arrays(cache.view))
    before = mx.get_active_memory()
    copied = batching.snapshot(cache)
    mx.eval(cache_arrays(copied.view))
    assert mx.get_active_memory() - before < entry.nbytes // 100
    entry.trim(1)
    entry.update_and_fetch(mx.ones((1, 4, 1, 64)), mx.ones((1, 4, 1, 64)))
    assert copied.view[0].keys[0, 0, 4095, 0].item() == 0


def test_chunks_of_a_batch_prefill_are_exact() -> None:
    """Merged rows can take several positions in one step, too."""
    specimen = Specimen(CONFIGS["llama"])
    chain, whole = specimen.chain(specimen.thirds), Whole(specimen.model)
    per_chunk = []
    for runner in (whole, chain):
        merged = [batching.merge(same) for same in zip(*prefilled(runner, 9, 6), strict=True)]
        logits = [runner.step(token_ids(2, 4), merged, position=9)]
        logits += [runner.step(token_ids(2, 1), merged, position=13)]
        per_chunk.append(logits)
    assert difference(per_chunk[1], per_chunk[0]) == 0
