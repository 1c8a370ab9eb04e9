"""Small checkpoints of random bytes on disk, for code that moves bytes and runs no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.checkpoint.tensor_names import layer_index
from shardhub.manifest import Crossing, Source
from shardhub.splitting.split import ModelContents, StageContents, Versions

FOLDER = Source(repo=None, commit=None)
HIDDEN = 8
VERSIONS = Versions(shardhub="0.1.0", mlx="0.32.4", mlx_lm="0.32.2", device="Device(cpu, 0)")
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 32,
    "rope_theta": 10_000.0,
    "time_step_limit": [0.0, float("inf")],
}


def arrays(num_layers: int, *, tied: bool, seed: int = 0, rows: int = 16) -> dict[str, np.ndarray]:
    """Tensors of a model, quantised ones among them."""
    random = np.random.default_rng(seed)

    def floats(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float16)

    tensors = {"model.embed_tokens.weight": floats(32, HIDDEN), "model.norm.weight": floats(HIDDEN)}
    if not tied:
        tensors["lm_head.weight"] = floats(32, HIDDEN)
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = random.standard_normal(HIDDEN).astype(np.float32)
        packed = random.integers(0, 2**32, (rows, HIDDEN // 8), dtype=np.uint32)
        tensors[f"{prefix}.mlp.up_proj.weight"] = packed
        tensors[f"{prefix}.mlp.up_proj.scales"] = floats(rows, 1)
        tensors[f"{prefix}.mlp.up_proj.biases"] = floats(rows, 1)
    return tensors


def write_checkpoint(
    folder: Path,
    num_layers: int = 4,
    *,
    tied: bool = True,
    num_files: int = 2,
    seed: int = 0,
    rows: int = 16,
    config: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Write a model folder; returns its tensors by name."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = arrays(num_layers, tied=tied, seed=seed, rows=rows)
    names = sorted(tensors)
    weight_map = {}
    for number in range(num_files):
        file = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::num_files]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    full = {**CONFIG, "num_hidden_layers": num_layers, "tie_word_embeddings": tied, **(config or {})}
    (folder / "config.json").write_text(json.dumps(full))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran code of the model folder')")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en, de]\nbase_model: org/base\n---\n# A\n")
    return tensors


def contents_of(checkpoint: Checkpoint) -> ModelContents:
    """The model layer's account of a generated checkpoint."""
    num_layers = int(checkpoint.config["num_hidden_layers"])
    return ModelContents(
        num_layers=num_layers,
        dtype="F16",
        stored_names={name: name for name in checkpoint.tensors},
        layer_of={name: layer_index(name, num_layers) for name in checkpoint.tensors},
        versions=VERSIONS,
    )


def stages_of(checkpoint: Checkpoint, cuts: Sequence[int], *, next_norm: bool = False) -> list[StageContents]:
    """Stages between these cuts; with `next_norm` a stage also needs the norm of the following layer."""
    contents = contents_of(checkpoint)
    num, tied = contents.num_layers, "lm_head.weight" not in checkpoint.tensors
    borders = [0, *cuts, num]
    stages = []
    for start, stop in pairwise(borders):
        needed = [name for name, layer in contents.layer_of.items() if layer is not None and start <= layer < stop]
        if start == 0 or (stop == num and tied):
            needed.append("model.embed_tokens.weight")
        if stop == num:
            needed += ["model.norm.weight", *([] if tied else ["lm_head.weight"])]
        elif next_norm:
            needed.append(f"model.layers.{stop}.input_layernorm.weight")
        stages.append(
            StageContents(
                start=start,
                stop=stop,
                tensors=tuple(needed),
                crossings_in=_crossing(start - 1) if start else (),
                crossings_out=_crossing(stop - 1) if stop < num else (),
                graph_hash=f"{start:032x}{stop:032x}",
                proof_chunks=(3, 5, 1, 1),
            )
        )
    return stages


def _crossing(layer: int) -> tuple[Crossing, ...]:
    return (Crossing(name=f"layer.{layer}", dtype="F16", shape=("B", "L", HIDDEN)),)
