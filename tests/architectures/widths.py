"""The table of widths that small models are made with: `python -m tests.architectures.widths` writes it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

import shardhub.model
from shardhub.errors import UnsupportedModel
from shardhub.model.build import instantiate
from tests.architectures.matrix import CONFIGS
from tests.architectures.standins import standing_in

TABLE = Path(shardhub.model.__file__).with_name("miniatures.json")
# Widths that stand alone: changed by themselves they contradict others, so that no trial shows them.
_TOGETHER = {
    "cohere2": ("head_dim", "hidden_size", "num_attention_heads"),
    "minicpm3": ("qk_rope_head_dim",),
    "phimoe": ("num_attention_heads",),
}


def widths(module: str) -> dict[str, int]:
    """Fields of a tiny configuration that are widths: they change tensors' shapes but not which tensors exist."""
    config = CONFIGS[module]
    with standing_in(module):
        before = _shapes(config)
        fields = {path: value for path, value in _numbers(config) if _is_width(config, path, value, before)}
    fields |= {name: config[name] for name in _TOGETHER.get(module, ())}
    return dict(sorted(fields.items()))


def _is_width(config: Mapping[str, Any], path: str, value: int, before: Mapping[str, Any]) -> bool:
    name = path.rpartition(".")[2]
    counts_experts = "expert" in name and not name.endswith(("size", "dim"))
    if counts_experts or "conv" in name or "position" in name or name == "hc_mult":
        return False  # how many there are, or lengths: these stay
    for other in (value * 2, value * 4, value // 2, value + 1):
        changed = copy.deepcopy(dict(config))
        *parents, last = path.split(".")
        block = changed
        for parent in parents:
            block = block[parent]
        block[last] = other
        try:
            after = _shapes(changed)
        except (UnsupportedModel, IndexError):
            continue
        return after.keys() == before.keys() and after != before
    return False


def _numbers(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in block.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif type(value) is int:
            yield f"{prefix}{key}", value


def _shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: array.shape for name, array in tree_flatten(instantiate(config).parameters())}


def main() -> None:
    """Write the table."""
    table = {module: widths(module) for module in sorted(CONFIGS)}
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
