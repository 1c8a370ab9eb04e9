"""A model taken through the product: split to disk, loaded by engines, run by real steps, compared with upstream.

Upstream is mlx_lm on the same folder, loaded as mlx_lm loads it. Of one session, log probabilities must be identical
bit for bit; side by side, within what another order of summing explains. What a chain cannot do it must refuse.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import cache as caches
from mlx_lm.utils import load_model

from shardhub.checkpoint.checkpoint import open_checkpoint
from shardhub.engine.engine import Engine, EngineSettings
from shardhub.errors import SessionNotRewindable, ShardhubError, UnsupportedModel, WireError
from shardhub.manifest import Source
from shardhub.model.dissection import Dissection
from shardhub.model.lazily import forward
from shardhub.model.sampling import draw_key, likeliest, sample, score, top_tokens
from shardhub.naming import pipeline_name
from shardhub.parameters import MAX_TOP_LOGPROBS, SamplingParameters
from shardhub.protocol import (
    HopKind,
    KvQuantization,
    Lane,
    NextHop,
    OpenSession,
    Row,
    RowResult,
    Step,
    StepFailure,
    TopTokens,
    new_id,
)
from shardhub.shard import Pipeline, read_pipeline
from shardhub.splitting.split import split
from tests import cut, tiny

CONTEXT = 96
HEAD = b"h" * 16
KV = KvQuantization(bits=8, group_size=32)
# Largest difference of log probabilities that another order of summing makes, by the dtype most weights have.
TOLERANCE = {"F32": 1e-3}
HALF_TOLERANCE = 0.25
_PARAMETERS = SamplingParameters(top_logprobs=MAX_TOP_LOGPROBS)
# Chunks of a prompt; windows in the configurations are 4 to 8 positions wide.
_PROMPT = (7, 5)
_LONG_PROMPT = (23, 17)
_SHORT_PROMPT = (2, 1)
# Side by side: prompts, and the rows and positions of each step.
_ROWS = (9, 4, 26, 1, 6)
_TOGETHER: tuple[tuple[tuple[int, ...], int], ...] = (
    ((0, 1), 1),
    ((0, 1, 2), 1),
    ((2, 0, 4, 3, 1), 1),
    ((2, 0, 4, 3, 1), 2),
    ((4, 0, 3), 1),
    ((3,), 1),
    ((3, 1), 1),
)
_MAX_ID = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of one use of a chain.

    Attributes:
        outcome: `exact`, bit for bit; `right`, but for the order of summing; `refused`, with an error; `wrong`; or
            `failed`, with an error that is none of ours, or where none was due.
        note: The reason.
    """

    outcome: str
    note: str = ""

    @property
    def is_good(self) -> bool:
        return self.outcome in ("exact", "right", "refused")


@dataclass(frozen=True, slots=True)
class Pick:
    """The likeliest token after a position, its log probability, and the twenty likeliest tokens."""

    token: int
    logprob: float
    top: TopTokens


class Upstream:
    """The unsplit model, as mlx_lm loads it from its folder."""

    def __init__(self, folder: Path, kv: KvQuantization | None = None) -> None:
        self.model, _ = load_model(folder)
        self._kv = kv

    def new_cache(self) -> list[Any]:
        plain = caches.make_prompt_cache(self.model)
        return [self._quantized(entry) if type(entry) is caches.KVCache else entry for entry in plain]

    def step(self, ids: Sequence[int], cache: list[Any]) -> mx.array:
        """Logits (L, V) of a chunk."""
        logits = forward(self.model, mx.array([list(ids)], mx.int32), cache)[0]
        mx.eval(logits, [entry.state for entry in cache if not entry.empty()])
        return logits

    def run(self, chunks: Sequence[Sequence[int]]) -> list[mx.array]:
        """Logits of each chunk of a sequence."""
        cache = self.new_cache()
        return [self.step(chunk, cache) for chunk in chunks]

    def _quantized(self, entry: Any) -> Any:
        kv = self._kv
        return entry if kv is None else caches.QuantizedKVCache(group_size=kv.group_size, bits=kv.bits)


def picks(logits: mx.array) -> list[Pick]:
    """The tokens that the last stage draws after each position of logits (L, V)."""
    chosen = []
    for row in range(logits.shape[0]):
        token, logprobs = sample(logits[row, :], (), _PARAMETERS, None, draw_key(0, 0, 0))
        top = likeliest(logprobs, MAX_TOP_LOGPROBS)
        chosen.append(Pick(int(token.item()), float(logprobs[token].item()), top_tokens(*top)))
    return chosen


class Product:
    """Engines over the shards of a pipeline, in order; steps go from one to the next as links carry them.

    Args:
        pipeline: What `split_to_disk` wrote.
        kv: How K and V are quantised.
        joined: Stages that one engine serves together, from the first on.

    Raises:
        ShardhubError: As `Engine.start`.
    """

    def __init__(self, pipeline: Pipeline, *, kv: KvQuantization | None = None, joined: int = 1) -> None:
        count = len(pipeline.manifest.stages)
        groups = [list(range(joined)), *([index] for index in range(joined, count))]
        self.engines: list[Engine] = []
        try:
            for group in groups:
                settings = EngineSettings(context=CONTEXT, kv=kv)
                self.engines.append(Engine.start(cut.shards(pipeline, *group), settings))
        except BaseException:
            self.stop()
            raise
        self.max_rows = min(engine.limits.max_rows for engine in self.engines)
        self.rewind_limit = min(engine.limits.rewind_limit for engine in self.engines)
        self.batch_refusals = [engine.batch_refusal for engine in self.engines if engine.batch_refusal is not None]

    def stop(self) -> None:
        for engine in self.engines:
            engine.stop()

    def open(self, session: bytes = b"", *, epoch: int = 1, position: int | None = None, fork_of: bytes = b"") -> bytes:
        """Open a session on every engine."""
        session = session or new_id()
        for index, engine in enumerate(self.engines):
            kind = HopKind.END if index == len(self.engines) - 1 else HopKind.OPENER
            call = OpenSession(
                head=HEAD,
                session=session,
                epoch=epoch,
                context=CONTEXT,
                parameters=_PARAMETERS,
                next_hop=NextHop(kind=kind),
                position=position,
                fork_of=fork_of,
            )
            engine.open(call).result()
        return session

    def close(self, *sessions: bytes, park: bool = False) -> None:
        for session in sessions:
            for engine in self.engines:
                engine.close_session(HEAD, session, 99, park=park).result()

    def step(self, rows: Sequence[Row], ids: Sequence[Sequence[int]], *, verify: bool = False) -> list[RowResult]:
        """Run a step through all engines."""
        length = len(ids[0])
        step = Step(
            rows=tuple(rows),
            length=length,
            ids=np.asarray(ids, np.int32).tobytes(),
            crossings={},
            deadline=time.monotonic() + 600,
            lane=Lane.DECODE if length == 1 or verify else Lane.PREFILL,
            verify=verify,
        )
        for engine in self.engines:
            outcome = engine.step(HEAD, step).result()
            if isinstance(outcome, StepFailure):
                raise outcome.error
            if isinstance(outcome.output, Step):
                step = outcome.output
            else:
                return list(outcome.output.rows)
        raise AssertionError("the last engine gave no result")

    def run(self, session: bytes, chunks: Sequence[Sequence[int]], *, position: int = 0, epoch: int = 1) -> list[Pick]:
        """The tokens drawn after each chunk of a session."""
        results = []
        for chunk in chunks:
            row = Row(session=session, epoch=epoch, position=position, sample=True)
            results += _drawn(self.step([row], [chunk])[0])
            position += len(chunk)
        return results


def _drawn(result: RowResult) -> list[Pick]:
    return [Pick(*drawn) for drawn in zip(result.tokens, result.logprobs, result.top, strict=True)]


def split_to_disk(
    model: Path, out: Path, choose: Callable[[int], Sequence[int]] = lambda count: thirds(count)
) -> tuple[Pipeline, str]:
    """Split a model folder as `shardhub split` does, in the dtype that most of its weights have.

    Raises:
        ShardhubError: It cannot be split.
    """
    checkpoint = open_checkpoint(model)
    dissection = Dissection(checkpoint.config, {key: tensor.spec for key, tensor in checkpoint.tensors.items()})
    count = dissection.anatomy.num_layers
    stages = dissection.stages(list(pairwise([0, *choose(count), count])))
    contents = dissection.model()
    split(checkpoint, contents, stages, out, name=cut.NAME, source=Source(repo=None, commit=None))
    return read_pipeline(out / pipeline_name(cut.NAME)), contents.dtype


def thirds(num_layers: int) -> tuple[int, ...]:
    """Positions of a cut in three, or in two if the model has two layers."""
    return tuple(sorted({max(1, num_layers // 3), min(num_layers - 1, max(2, 2 * num_layers // 3))}))


def check(
    pipeline: Pipeline, folder: Path, dtype: str, *, joined: int = 1, with_kv_bits: bool = True
) -> dict[str, Verdict]:
    """Use a chain in every way and compare it with upstream: first with plain, then with quantised K and V."""
    verdicts: dict[str, Verdict] = {}
    try:
        with _started(pipeline, joined=joined) as product:
            uses = _Uses(product, Upstream(folder), dtype)
            verdicts["served"] = Verdict(
                outcome="exact", note=product.batch_refusals[0] if product.batch_refusals else ""
            )
            for name, use in uses.all().items():
                verdicts[name] = _tried(use)
    except ShardhubError as error:
        verdicts["served"] = Verdict(outcome="failed", note=said(error))
        return verdicts
    except Exception as error:  # noqa: BLE001 - one model must not end the table
        verdicts["served"] = Verdict(outcome="failed", note=said(error))
        return verdicts
    if with_kv_bits:
        verdicts["kv_bits"] = _tried(lambda: _quantised(pipeline, folder))
    return verdicts


@contextmanager
def _started(pipeline: Pipeline, **options: Any) -> Iterator[Product]:
    product = Product(pipeline, **options)
    try:
        yield product
    finally:
        product.stop()


def serve(
    config: Mapping[str, Any], model: nn.Module, folder: Path, *, with_kv_bits: bool = True
) -> dict[str, Verdict]:
    """Take a model through the product: save it, split it in three, and use it."""
    tiny.save(model, dict(config), folder / "model")
    try:
        pipeline, dtype = split_to_disk(folder / "model", folder / "out")
    except Exception as error:  # noqa: BLE001 - one model must not end the table
        return {"served": Verdict(outcome="failed", note=said(error))}
    return check(pipeline, folder / "model", dtype, with_kv_bits=with_kv_bits)


def _tried(use: Callable[[], Verdict]) -> Verdict:
    try:
        return use()
    except Exception as error:  # noqa: BLE001 - as above
        return Verdict(outcome="failed", note=said(error))


def said(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, ShardhubError):
        return f"{type(error).__name__}: {error.what} {error.why}".strip()
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def _quantised(pipeline: Pipeline, folder: Path) -> Verdict:
    """Run sessions with K and V in 8 bits, or give the reason why the model has no such sessions."""
    try:
        product = Product(pipeline, kv=KV)
    except UnsupportedModel as error:
        return Verdict(outcome="refused", note=f"{error.what} {error.why}")
    try:
        return _Uses(product, Upstream(folder, KV), "F32").alone()
    finally:
        product.stop()


class _Uses:
    """The uses of a chain, each compared with upstream."""

    def __init__(self, product: Product, upstream: Upstream, dtype: str) -> None:
        self._product = product
        self._upstream = upstream
        self._tolerance = TOLERANCE.get(dtype, HALF_TOLERANCE)
        self._is_half = dtype not in TOLERANCE
        self._known: dict[Any, list[mx.array]] = {}

    def all(self) -> Mapping[str, Callable[[], Verdict]]:
        """All uses, by name."""
        return {
            "alone": self.alone,
            "batched": self.batched,
            "forked": self.forked,
            "rewound": self.rewound,
            "parked": self.parked,
            "drafted": self.drafted,
            "replayed": self.replayed,
            "scored": self.scored,
        }

    def alone(self) -> Verdict:
        """Short and long prompts, in one chunk, in several, and of a single id."""
        for lengths in ((*_PROMPT, *[1] * 6), (*_LONG_PROMPT, *[1] * 3), (1, 1, 1), (*_SHORT_PROMPT, 3, 1)):
            chunks = _chunks(lengths)
            session = self._product.open()
            picked = self._product.run(session, chunks)
            self._product.close(session)
            if (verdict := _same(picked, self._expected(chunks))).outcome != "exact":
                return verdict
        return Verdict(outcome="exact")

    def batched(self) -> Verdict:
        """Rows of different lengths side by side that join and leave, or a refusal of two rows."""
        if self._product.max_rows == 1:
            return self._one_at_a_time()
        texts = [
            _text(length + sum(n for rows, n in _TOGETHER if row in rows) + 1, 20 + row)
            for row, length in enumerate(_ROWS)
        ]
        sessions = [self._product.open() for _ in _ROWS]
        for session, text, length in zip(sessions, texts, _ROWS, strict=True):
            self._product.run(session, [text[:length]])
        at = list(_ROWS)
        apart: list[list[float]] = [[] for _ in _ROWS]
        for rows, length in _TOGETHER:
            sent = [
                Row(
                    session=sessions[row],
                    epoch=1,
                    position=at[row],
                    sample=True,
                    targets=tuple(texts[row][at[row] + 1 : at[row] + length + 1]),
                )
                for row in rows
            ]
            results = self._product.step(sent, [texts[row][at[row] : at[row] + length] for row in rows])
            for row, result in zip(rows, results, strict=True):
                expected = self._scores(texts[row], row, at[row], length)
                apart[row].append(_difference(result.target_logprobs, expected))
                at[row] += length
        self._product.close(*sessions)
        for row, steps in enumerate(apart):
            # In half precision a router may choose another expert now and then: see `selfcheck`.
            worst = sorted(steps)[len(steps) // 2] if self._is_half else max(steps)
            if not worst <= self._tolerance:
                return Verdict(outcome="wrong", note=f"row {row + 1} is off by {worst:.2g}")
        return Verdict(outcome="right", note=f"within {max(map(max, apart)):.1g}")

    def _one_at_a_time(self) -> Verdict:
        sessions = [self._product.open() for _ in range(2)]
        for session in sessions:
            self._product.run(session, _chunks((3,)))
        rows = [Row(session=session, epoch=1, position=3, sample=True) for session in sessions]
        try:
            self._product.step(rows, [[1], [1]])
        except WireError:
            return Verdict(outcome="refused", note=self._product.batch_refusals[0])
        finally:
            self._product.close(*sessions)
        return Verdict(outcome="failed", note="two rows were taken where the limit is one")

    def forked(self) -> Verdict:
        """A session that begins with another's positions: all of them, or fewer where caches can be trimmed."""
        chunks = _chunks((*_PROMPT, 1, 1))
        parent = self._product.open()
        picked = self._product.run(parent, chunks[:2])
        child = self._product.open(fork_of=parent, position=sum(_PROMPT))
        for session in (child, parent):
            ran = picked + self._product.run(session, chunks[2:], position=sum(_PROMPT))
            if (verdict := _same(ran, self._expected(chunks))).outcome != "exact":
                return verdict
        self._product.close(child, parent)
        return self._back(lambda session, position: self._product.open(fork_of=session, position=position))

    def rewound(self) -> Verdict:
        """A session that is rewound under a new epoch and goes on with other ids."""
        return self._back(lambda session, position: self._product.open(session, epoch=2, position=position))

    def _back(self, go: Callable[[bytes, int], bytes]) -> Verdict:
        """Rewind from the end of a prompt's second chunk to its first; within the limit this must succeed."""
        notes = []
        for lengths in (_PROMPT, _SHORT_PROMPT):
            chunks, other = _chunks((*lengths, 1)), _chunks((lengths[0], 3, 1), seed=8)
            other[0] = chunks[0]
            session = self._product.open()
            self._product.run(session, chunks[:2])
            may = sum(lengths) <= self._product.rewind_limit
            try:
                child = go(session, lengths[0])
            except (SessionNotRewindable, UnsupportedModel) as error:
                self._product.close(session)
                if may:
                    return Verdict(outcome="failed", note=said(error))
                notes.append(f"not from {sum(lengths)} positions")
                continue
            epoch = 2 if child == session else 1
            picked = self._product.run(child, other[1:], position=lengths[0], epoch=epoch)
            self._product.close(child, session)
            # Past its limit a cache may go back all the same: then rightly.
            if (verdict := _same(picked, self._expected(other)[1:])).outcome != "exact":
                return verdict
        return Verdict(outcome="refused" if len(notes) == 2 else "exact", note="; ".join(notes))

    def parked(self) -> Verdict:
        """A session that was parked, and one forked from it."""
        chunks = _chunks((*_PROMPT, 1, 1))
        parent = self._product.open()
        picked = self._product.run(parent, chunks[:2])
        self._product.close(parent, park=True)
        child = self._product.open(fork_of=parent, position=sum(_PROMPT))
        picked += self._product.run(child, chunks[2:], position=sum(_PROMPT))
        self._product.close(child, parent)
        return _same(picked, self._expected(chunks))

    def drafted(self) -> Verdict:
        """Drafts verified in one step: right ones are kept, wrong ones dropped where caches can be trimmed."""
        prompt = _chunks((2,))
        upstream = self._upstream.new_cache()
        first = picks(self._upstream.step(prompt[0], upstream)[-1:])[0].token
        # The draft's first guess is right, and its second wrong.
        trial = self._expected([*prompt, [first]])[-1].token
        window = [first, trial, (self._expected([*prompt, [first], [trial]])[-1].token + 1) % _MAX_ID]
        expected = picks(self._upstream.step(window, upstream))
        session = self._product.open()
        self._product.run(session, prompt)
        row = Row(session=session, epoch=1, position=2, sample=True)
        picked = _drawn(self._product.step([row], [window], verify=True)[0])
        if (verdict := _same(picked, expected[: len(picked)])).outcome != "exact":
            return verdict
        kept = next((at for at in range(2) if window[at + 1] != expected[at].token), 2) + 1
        if len(picked) != kept:
            return Verdict(outcome="wrong", note=f"{len(picked)} tokens were kept of {kept}")
        may = self._product.rewind_limit >= 5
        discard = 3 - kept
        row = Row(session=session, epoch=1, position=5 - discard, sample=True, discard=discard)
        try:
            result = self._product.step([row], [[picked[-1].token]])
        except (SessionNotRewindable, UnsupportedModel) as error:
            if may and discard:
                return Verdict(outcome="failed", note=said(error))
            return Verdict(outcome="refused", note=f"not from 5 positions: {error.what}")
        finally:
            self._product.close(session)
        if discard:
            caches.trim_prompt_cache(upstream, discard)
        return _same(_drawn(result[0]), picks(self._upstream.step([picked[-1].token], upstream)[-1:]))

    def replayed(self) -> Verdict:
        """A session that starts again under another epoch, as after a failure."""
        chunks = _chunks((*_PROMPT, 1, 1))
        session = self._product.open()
        self._product.run(session, _chunks((4, 1), seed=9))
        self._product.open(session, epoch=2, position=0)
        picked = self._product.run(session, chunks, epoch=2)
        self._product.close(session)
        return _same(picked, self._expected(chunks))

    def scored(self) -> Verdict:
        """Log probabilities of a prompt's ids."""
        text = _text(sum(_PROMPT) + 1, 5)
        cache, position, session = self._upstream.new_cache(), 0, self._product.open()
        for length in _PROMPT:
            chunk, targets = text[position : position + length], text[position + 1 : position + length + 1]
            expected, top = score(self._upstream.step(chunk, cache), targets, MAX_TOP_LOGPROBS)
            row = Row(session=session, epoch=1, position=position, sample=False, targets=tuple(targets))
            (result,) = self._product.step([row], [chunk])
            if list(result.target_logprobs) != expected or list(result.target_top) != top:
                return Verdict(outcome="wrong", note=f"off by {_difference(result.target_logprobs, expected):.2g}")
            position += length
        self._product.close(session)
        return Verdict(outcome="exact")

    def _expected(self, chunks: Sequence[Sequence[int]]) -> list[Pick]:
        """The tokens that upstream alone draws after each chunk."""
        return [picks(logits[-1:])[0] for logits in self._upstream_run(chunks)]

    def _scores(self, text: Sequence[int], row: int, start: int, length: int) -> list[float]:
        """Log probabilities of the ids after each of `length` positions of a sequence run alone, in the same chunks."""
        lengths = (_ROWS[row], *(steps for rows, steps in _TOGETHER if row in rows))
        ends = [0, *accumulate(lengths)]
        logits = mx.concatenate(self._upstream_run([text[at:stop] for at, stop in pairwise(ends)]))
        return score(logits[start : start + length], text[start + 1 : start + length + 1], 1)[0]

    def _upstream_run(self, chunks: Sequence[Sequence[int]]) -> list[mx.array]:
        key = tuple(map(tuple, chunks))
        if key not in self._known:
            self._known[key] = self._upstream.run(chunks)
        return self._known[key]


def _text(length: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(1, _MAX_ID, length)]


def _chunks(lengths: Sequence[int], *, seed: int = 3) -> list[list[int]]:
    text = _text(sum(lengths), seed)
    ends = [sum(lengths[:at]) for at in range(len(lengths) + 1)]
    return [text[start:stop] for start, stop in pairwise(ends)]


def _same(actual: Sequence[Pick], expected: Sequence[Pick]) -> Verdict:
    """Whether tokens and log probabilities are the same, bit for bit."""
    if list(actual) == list(expected):
        return Verdict(outcome="exact")
    off = [abs(a.logprob - b.logprob) for a, b in zip(actual, expected, strict=False)]
    where = next((at for at, (a, b) in enumerate(zip(actual, expected, strict=False)) if a != b), len(off))
    return Verdict(
        outcome="wrong", note=f"step {where} of {len(expected)} differs, by {max(off, default=0.0):.2g} at most"
    )


def _difference(actual: Sequence[float], expected: Sequence[float]) -> float:
    pairs = list(zip(actual, expected, strict=True))
    off = [0.0 if a == b else abs(a - b) for a, b in pairs]
    return max((value if value == value else float("inf") for value in off), default=float("inf"))
