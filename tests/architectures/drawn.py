"""Models drawn at random (configurations, dtypes, quantisation), taken through the product.

    python -m tests.architectures.drawn --count 300 --seed 0 [--modules llama,gemma2]

A draw changes a module's tiny configuration: heads, grouped queries, windows, ratios, ropes, tied or not. What upstream
itself cannot build or run whole is drawn again. Each model is split to disk, loaded by engines and used as
`product.check` does; what is wrong, fails, or is refused though upstream does it rightly, is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import quantize_model

from shardhub.errors import ShardhubError
from tests import tiny
from tests.architectures import abilities, product
from tests.architectures.matrix import CONFIGS, LOOPED, Whole, random_model, run, token_ids
from tests.architectures.standins import standing_in

_ROPES: tuple[Any, ...] = (
    None,
    {"rope_type": "linear", "type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "type": "dynamic", "factor": 2.0},
    {
        "rope_type": "llama3",
        "type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    {
        "rope_type": "yarn",
        "type": "yarn",
        "factor": 4.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16,
    },
)
# Values a field may be drawn from. Those of one name mean the same in all modules.
_VALUES: dict[str, tuple[Any, ...]] = {
    "attention_bias": (True, False),
    "attn_res_block_size": (1, 2, 3, 4),
    "conv_L_cache": (2, 3, 4, 5),
    "conv_kernel": (2, 3, 4),
    "decoder_sparse_step": (1, 2, 3),
    "first_k_dense_replace": (0, 1, 3),
    "full_attention_interval": (1, 2, 3, 4),
    "head_dim": (16, 24, 32, 64),
    "index_topk": (1, 4, 7, 16, 32),
    "intermediate_size": (96, 128, 256),
    "layer_group_size": (2, 3, 4),
    "linear_conv_kernel_dim": (2, 3, 4),
    "linear_num_value_heads": (4, 8),
    "max_position_embeddings": (16, 64, 1000),
    "mlp_bias": (True, False),
    "moe_intermediate_size": (32, 64, 96),
    "moe_layer_freq": (1, 2),
    "norm_topk_prob": (True, False),
    "num_experts_per_tok": (1, 2, 3),
    "num_kv_shared_layers": (0, 2, 3, 5),
    "partial_rotary_factor": (0.25, 0.5, 1.0),
    "q_lora_rank": (None, 8, 32),
    "kv_lora_rank": (16, 32, 64),
    "rope_scaling": _ROPES,
    "rope_theta": (100.0, 10000.0, 1000000.0),
    "sliding_window": (2, 3, 5, 8, 13, 40),
    "sliding_window_size": (2, 3, 5, 8, 13),
    "sliding_window_pattern": (2, 3, 4, 6),
    "sparse_block_size": (2, 4, 8),
    "sparse_topk_blocks": (1, 2, 4),
    "tie_word_embeddings": (True, False),
    "topk_group": (1, 2),
    "use_qk_norm": (True, False),
    "use_bias": (True, False),
    "v_head_dim": (16, 24, 32),
    "vocab_size": (101, 257, 512),
}
_HEADS = (1, 2, 3, 4, 6, 8)
_CHANGES = (2, 3, 5, 8)
_TRIES = 12
_DTYPES = ("F32", "F32", "BF16", "F16", "mixed")
_QUANTISATIONS: tuple[dict[str, Any] | None, ...] = (
    None,
    None,
    None,
    None,
    None,
    None,
    {"group_size": 32, "bits": 4},
    {"group_size": 64, "bits": 8},
    {"group_size": 32, "bits": 4, "mixed": True},
    {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    {"group_size": 32, "bits": 8, "mode": "mxfp8"},
)
_MX = {"F32": mx.float32, "BF16": mx.bfloat16, "F16": mx.float16}


class Rejected(Exception):
    """Upstream itself cannot build or run the drawn model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A model drawn at random.

    Attributes:
        config: Its config.json, before quantisation is noted in it.
        dtype: Of its weights; `mixed` draws one for each tensor.
        quantisation: What quantises it, as `mlx_lm.convert` does.
        positions: The cut, as shares of the layers.
        is_joined: Whether one engine serves the first two stages together.
        has_kv_bits: Whether engines with quantised K and V are tried, too.
    """

    module: str
    seed: int
    config: dict[str, Any]
    dtype: str
    quantisation: dict[str, Any] | None
    positions: tuple[float, ...]
    is_joined: bool
    has_kv_bits: bool

    def cut(self, num_layers: int) -> tuple[int, ...]:
        """Cut positions."""
        return tuple(sorted({min(num_layers - 1, max(1, round(share * num_layers))) for share in self.positions}))


def draw(module: str, seed: int) -> Drawn:
    """Draw a model of a module from a seed. Some draws cannot be built: see `build`."""
    random = Random(f"{module}:{seed}")
    config = json.loads(json.dumps(CONFIGS[module]))
    block = config.get("text_config") or config.get("language_config") or config
    for _ in range(random.choice(_CHANGES)):
        _change(block, random)
    return Drawn(
        module=module,
        seed=seed,
        config=config,
        dtype=random.choice(_DTYPES),
        quantisation=random.choice(_QUANTISATIONS),
        positions=tuple(random.random() for _ in range(random.choice((1, 2, 2, 3)))),
        is_joined=random.random() < 0.2,
        has_kv_bits=random.random() < 0.25,
    )


def build(drawn: Drawn) -> tuple[nn.Module, dict[str, Any]]:
    """Upstream's model with random weights, and its config.json.

    Raises:
        Rejected: Upstream cannot build it, or its logits for a prompt are not numbers.
    """
    try:
        model = random_model(drawn.config, seed=drawn.seed + 1)
        _cast(model, drawn.dtype, Random(drawn.seed))
        config = dict(drawn.config)
        if drawn.quantisation is not None:
            with redirect_stdout(StringIO()):
                model, config = _quantised(model, config, drawn.quantisation)
        logits = run(Whole(model), token_ids(1))
        if any(mx.isnan(out).any().item() for out in logits) or not mx.isfinite(logits[-1].max()).item():
            raise Rejected("its logits are not numbers")
    except Rejected:
        raise
    except Exception as error:  # upstream raises whatever it likes
        raise Rejected(product.said(error)) from error
    return model, config


def drawn_and_built(module: str, seed: int) -> tuple[Drawn, nn.Module, dict[str, Any]]:
    """The first draw from a seed that upstream can run, or else the module's own configuration."""
    for attempt in range(_TRIES):
        drawn = draw(module, seed * 1000 + attempt)
        try:
            return drawn, *build(drawn)
        except Rejected:
            continue
    raise Rejected(f"none of {_TRIES} draws can be run")


def check(drawn: Drawn, model: nn.Module, config: dict[str, Any], folder: Path) -> dict[str, product.Verdict]:
    """Take a drawn model through the product and check every use."""
    tiny.save(model, config, folder / "model")
    try:
        pipeline, dtype = product.split_to_disk(folder / "model", folder / "out", drawn.cut)
    except ShardhubError as error:
        return {"split": product.Verdict(outcome="refused", note=product.said(error))}
    except Exception as error:  # noqa: BLE001 - one model must not end the run
        return {"split": product.Verdict(outcome="failed", note=product.said(error))}
    joined = 2 if drawn.is_joined and len(pipeline.manifest.stages) > 2 else 1
    verdicts = product.check(pipeline, folder / "model", dtype, joined=joined, with_kv_bits=drawn.has_kv_bits)
    if verdicts.get("batched", product.Verdict(outcome="")).outcome == "refused" and dtype == "F32":
        whole = Whole(model)
        if abilities.batch(whole, whole).supported:  # type: ignore[arg-type]
            verdicts["doubt"] = product.Verdict(outcome="doubt", note=verdicts["batched"].note)
    return verdicts


def _change(block: dict[str, Any], random: Random) -> None:
    """Change one thing in a configuration."""
    fields = [field for field in _VALUES if field in block]
    lists = [field for field, value in block.items() if isinstance(value, list) and len(value) > 2]
    nested = [value for value in block.values() if isinstance(value, dict) and any(name in _VALUES for name in value)]
    changes: list[Callable[[], None]] = []
    if "num_attention_heads" in block:
        changes += [lambda: _change_heads(block, random)] * 3
    if fields:
        changes += [lambda: block.update({(name := random.choice(fields)): random.choice(_VALUES[name])})] * 6
    if lists:
        changes += [lambda: random.shuffle(block[random.choice(lists)])]
    if nested:
        changes += [lambda: _change(random.choice(nested), random)] * 2
    if "rope_scaling" not in block and "rope_theta" in block:
        changes += [lambda: block.update(rope_scaling=random.choice(_ROPES))]
    if "tie_word_embeddings" not in block:
        changes += [lambda: block.update(tie_word_embeddings=random.choice((True, False)))]
    changes += [lambda: _change_any(block, random)]
    random.choice(changes)()


def _change_heads(block: dict[str, Any], random: Random) -> None:
    heads = random.choice(_HEADS)
    block["num_attention_heads"] = heads
    if "num_key_value_heads" in block:
        block["num_key_value_heads"] = random.choice([n for n in range(1, heads + 1) if heads % n == 0])
    if not block.get("head_dim") and isinstance(size := block.get("hidden_size"), int) and size % heads:
        block["hidden_size"] = heads * 32


def _change_any(block: dict[str, Any], random: Random) -> None:
    """Change any flag or small number."""
    names = sorted(
        name for name, value in block.items() if isinstance(value, bool) or (isinstance(value, int) and 0 < value <= 16)
    )
    if names:
        name = random.choice(names)
        value = block[name]
        block[name] = not value if isinstance(value, bool) else max(1, value + random.choice((-2, -1, 1, 2)))


def _cast(model: nn.Module, dtype: str, random: Random) -> None:
    may = getattr(model, "cast_predicate", lambda _: True)
    weights = []
    for name, value in tree_flatten(model.parameters()):
        if not mx.issubdtype(value.dtype, mx.floating) or not may(name):
            weights.append((name, value))
            continue
        if dtype == "mixed":
            # As published checkpoints mix them: norms, routers and single vectors wider than the rest.
            to = mx.float32 if value.ndim < 2 and random.random() < 0.5 else mx.bfloat16
        else:
            to = _MX[dtype]
        weights.append((name, value.astype(to)))
    model.update(tree_unflatten(weights))
    mx.eval(model.parameters())


def _quantised(model: nn.Module, config: dict[str, Any], settings: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    options = dict(settings)
    if options.pop("mixed", False):

        def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
            if not hasattr(module, "to_quantized") or module.weight.shape[-1] % 32:
                return False
            wide = {"group_size": 32, "bits": 8, "mode": "affine"}
            return wide if any(part in path for part in ("down", "embed", "o_proj")) else True

        options["quant_predicate"] = predicate
    return quantize_model(model, config, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", help="only these, separated by commas")
    options = parser.parse_args()
    modules = options.modules.split(",") if options.modules else sorted(CONFIGS.keys() - set(LOOPED))
    # Each kernel that mx.compile fuses costs a CPU a run of its compiler, for each shape; both sides go without alike.
    mx.disable_compile()
    random = Random(options.seed)
    counts: Counter[str] = Counter()
    uses: Counter[str] = Counter()
    for index in range(options.count):
        module, seed = random.choice(modules), options.seed * 100_000 + index
        started = time.monotonic()
        with standing_in(module), tempfile.TemporaryDirectory() as folder:
            try:
                drawn, model, config = drawn_and_built(module, seed)
            except Rejected as error:
                counts["rejected by upstream"] += 1
                print(f"{index} {module}: {error}", file=sys.stderr, flush=True)
                continue
            verdicts = check(drawn, model, config, Path(folder))
        kind = _kind(verdicts)
        counts[kind] += 1
        uses.update(f"{use} {verdict.outcome}" for use, verdict in verdicts.items())
        notes = {use: f"{v.outcome}: {v.note}" for use, v in verdicts.items() if _is_told(use, v)}
        changes = f" {_difference(CONFIGS[module], drawn.config)}" if notes else ""
        print(
            f"{index} {module} seed {drawn.seed} {drawn.dtype} {drawn.quantisation} cut {drawn.positions} "
            f"{time.monotonic() - started:.1f} s: {kind} {json.dumps(notes)}{changes}",
            flush=True,
        )
    print(json.dumps({"models": dict(counts), "uses": dict(sorted(uses.items()))}, indent=1))


def _kind(verdicts: dict[str, product.Verdict]) -> str:
    outcomes = {verdict.outcome for verdict in verdicts.values()}
    for kind in ("wrong", "failed", "doubt"):
        if kind in outcomes:
            return kind
    return "refused" if "split" in verdicts else "exact"


def _is_told(use: str, verdict: product.Verdict) -> bool:
    return not verdict.is_good or (verdict.outcome == "refused" and use in ("split", "batched"))


def _difference(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """What was changed in a configuration, by dotted name."""
    changes: dict[str, Any] = {}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            changes |= _difference(old, value, f"{prefix}{name}.")
        elif value != old or name not in before:
            changes[prefix + name] = value
    return changes


if __name__ == "__main__":
    main()
