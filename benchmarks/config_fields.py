"""The fields of config.json that change numbers and that mlx-lm's modules never read, as a table in the package.

What a module reads is found in its source; what changes numbers, in the source of transformers' own class for the
model, or in `config_meanings.py` where it has none. How rotary embeddings are read is measured: a tiny instance of each
module is run with one field changed. Takes about two minutes, and nothing but the installed packages.

    python benchmarks/config_fields.py [--check]
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "shardhub" / "checkpoint" / "config_fields.json"
READS = ROOT / "tests" / "architectures" / "config_reads.json"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import config_meanings as meanings  # noqa: E402

_SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0, "alpha": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 16},
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": 4,
        "short_factor": 1.0,
        "long_factor": 3.0,
        "short_mscale": 1.0,
        "long_mscale": 1.2,
    },
}


class Probe:
    """A tiny instance of a module, run with one field of its configuration changed."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        from mlx.utils import tree_flatten

        from tests.architectures.matrix import random_model

        self.config = copy.deepcopy(dict(config))
        self.weights = dict(tree_flatten(random_model(config, seed=4).parameters()))
        self.reference = self.logits(lambda part: None)

    @property
    def part(self) -> dict[str, Any]:
        return self._part(self.config)

    def logits(self, change: Callable[[dict[str, Any]], object]) -> Any:
        """Logits with a changed configuration and the same weights; None where it cannot be built with them."""
        from mlx.utils import tree_flatten, tree_unflatten
        from mlx_lm.utils import _get_classes

        from tests.architectures.matrix import Whole, run, token_ids

        config = copy.deepcopy(self.config)
        change(self._part(config))
        try:
            model_class, args_class = _get_classes(config=config)
            model = model_class(args_class.from_dict(copy.deepcopy(config)))
            shapes = {name: array.shape for name, array in tree_flatten(model.parameters())}
            if shapes != {name: array.shape for name, array in self.weights.items()}:
                return None
            model.eval()
            model.update(tree_unflatten(list(self.weights.items())))
            return run(Whole(model), token_ids(1, 12, seed=2), (12,))
        except Exception:  # noqa: BLE001 - a module may refuse a value in any way
            return None

    def matters(self, **fields: Any) -> bool:
        """Whether other logits come out with these fields."""
        from tests.architectures.matrix import difference

        logits = self.logits(lambda part: part.update(copy.deepcopy(fields)))
        return logits is not None and difference(logits, self.reference) != 0

    def alike(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Whether the same logits come out with either."""
        from tests.architectures.matrix import difference

        a, b = (self.logits(lambda part, fields=fields: part.update(copy.deepcopy(fields))) for fields in (one, other))
        return a is not None and b is not None and difference(a, b) == 0

    def needs(self, field: str) -> bool:
        """Whether the module takes null for a field, but not that it is absent."""
        absent = self.logits(lambda part: part.pop(field, None))
        return absent is None and self.logits(lambda part: part.update({field: None})) is not None

    @staticmethod
    def _part(config: dict[str, Any]) -> dict[str, Any]:
        nested = config.get("text_config")
        return nested if isinstance(nested, dict) else config


def rotary(
    module: str, config: Mapping[str, Any], reads: list[str], default_theta: float | None
) -> dict[str, Any] | None:
    """How a module reads its rotary embedding, measured; None where it has none."""
    if module in meanings.NESTED_NATIVE:
        return {"nested": True}
    probe = Probe(config)
    given = probe.part.get("rope_parameters") or {}
    base = {"rope_type": "default", "rope_theta": probe.part.get("rope_theta", 10000.0), **given}
    theta = meanings.THETA_NAMES.get(module) or ("rope_theta" if probe.matters(rope_theta=333.0) else None)
    native = probe.matters(rope_parameters={**base, "rope_theta": 333.0})
    if not theta and not native and module not in meanings.FIXED_THETAS:
        return None
    types, native_types, keys = [], [], {"type", "rope_type"}
    for name, values in _SCALINGS.items():
        scaling = {"type": name, "rope_type": name, **values}
        short = {"max_position_embeddings": 8}
        if probe.matters(**short, rope_scaling=scaling):
            types.append(name)
            for key in ("type", "rope_type"):
                alone = {other: value for other, value in scaling.items() if other not in {"type", "rope_type"} - {key}}
                if not probe.alike({**short, "rope_scaling": scaling}, {**short, "rope_scaling": alone}):
                    keys.discard(key)
        if probe.matters(**short, rope_parameters={**base, **scaling}):
            native_types.append(name)
    if module in meanings.ONLY_TYPES:
        types = meanings.ONLY_TYPES[module]
    if module in meanings.WHOLE_TYPES:
        native_types = list(_SCALINGS)
    partial = meanings.PARTIAL_NAMES.get(module)
    if partial is None and probe.matters(partial_rotary_factor=0.125):
        partial = "partial_rotary_factor"
    read: dict[str, Any] = {
        "theta": theta,
        "native": native,
        "types": types,
        "native_types": native_types if native else [],
        "partial": partial,
        "native_partial": probe.matters(rope_parameters={**base, "partial_rotary_factor": 0.125}),
        "partials": meanings.FIXED_PARTIALS.get(module, [1.0]),
    }
    if module in meanings.ONLY_TYPES:
        keys = {"type"}
    if types and keys != {"type", "rope_type"}:
        read["keys"] = sorted(keys)
    optional = {
        "default_theta": default_theta,
        "local": meanings.LOCAL_THETAS.get(module),
        "fixed": meanings.FIXED_THETAS.get(module),
        "dims": meanings.DIMS_NAMES.get(module) or ("qk_rope_head_dim" if "qk_rope_head_dim" in reads else None),
        "noted": meanings.NOTED.get(module),
        "needs_scaling": True if probe.needs("rope_scaling") else None,
    }
    return read | {name: value for name, value in optional.items() if value is not None}


def unread(module: str, reads: set[str], entry: str) -> dict[str, Any]:
    """The fields that change numbers and that a module never reads, each with when it changes nothing."""
    from tests.architectures.config_reads import known

    theirs = known(meanings.CLASSES.get(entry, entry))
    own = meanings.OWN.get(entry, {})
    renamed = meanings.RENAMED.get(entry, {})
    rules: dict[str, Any] = {field: {"copy": name} for field, name in renamed.items()}
    for field in sorted(theirs.reads - reads if theirs else ()):
        if {field, *(alias for alias, name in theirs.aliases.items() if name == field)} & reads:
            continue
        if field in meanings.NO_NUMBERS | meanings.OTHER_TENSORS | meanings.HANDLED or field in renamed:
            continue
        if field in own or field in ("layer_types", "sliding_window"):
            continue
        if field not in meanings.MEANINGS:
            raise SystemExit(f"{module}: {field} ({theirs.defaults[field]!r}) stands in none of the lists")
        if field == "attention_chunk_size":
            rules[field] = {"window": True}
        else:
            rules[field] = {"same": _same(module, field, theirs.defaults[field])}
    if theirs is None:
        for field, values in _taken_for_granted(module).items():
            if field not in reads and not (field == "hidden_act" and "hidden_activation" in reads):
                rules[field] = {"same": values}
    rules |= {field: {"same": values} for field, values in own.items() if values is not None and field not in reads}
    for field in (field for field, values in own.items() if values is None and field not in renamed):
        rules.pop(field, None)
    if entry == "plamo2":
        rules["attention_window_size"] = {"window": True}
    if entry == "llama4_text":
        rules["attn_temperature_tuning"]["beyond"] = "floor_scale"
    if entry == "mistral":
        rules["sliding_window"] = {"window": True, "unless": "layer_types"}
    elif not {"sliding_window", "sliding_window_size", "attention_window_size"} & (reads | renamed.keys()):
        asked = theirs is None or "sliding_window" not in theirs.reads
        rules["sliding_window"] = {"window": True, "asked": True} if asked else {"window": True}
    if "layer_types" not in reads and entry in meanings.PATTERNS:
        field, default = meanings.PATTERNS[entry]
        rules["layer_types"] = {"pattern": field, "default": default}
    return dict(sorted(rules.items()))


def _taken_for_granted(module: str) -> dict[str, list[Any]]:
    """What a module that transformers has no class for computes, by the tensors of its tiny instance."""
    from mlx.utils import tree_flatten

    from tests.architectures.matrix import CONFIGS, random_model

    names = [name for name, _ in tree_flatten(random_model(CONFIGS[module]).parameters())]
    biases = [name for name in names if name.endswith(".bias") and "norm" not in name and ".ln" not in name]
    has_head = any("head" in name.split(".layers.")[0] or name.endswith("output.weight") for name in names)
    return {
        "hidden_act": meanings.OWN_ACTIVATIONS.get(module, meanings.SILU),
        "tie_word_embeddings": [not has_head],
        "attention_bias": [any("attn" in name or "attention" in name or "mixer" in name for name in biases)],
        "mlp_bias": [any("mlp" in name or "feed_forward" in name or "moe" in name for name in biases)],
    }


def _same(module: str, field: str, default: Any) -> list[Any]:
    if field in meanings.ACTIVATION_FIELDS:
        names = meanings.ACTIVATIONS.get(default, [default])
        return [*meanings.TANH_GELU, *meanings.GELU] if module in meanings.BOTH_GELUS else names
    return [] if default is None else [default]


def make() -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The table, and the fields that each module reads."""
    from mlx_lm.utils import MODEL_ARCHITECTURE_REMAPPING, MODEL_REMAPPING

    from tests.architectures.config_reads import known, module_reads
    from tests.architectures.matrix import CONFIGS, upstream_modules
    from tests.architectures.standins import standing_in

    reads: dict[str, list[str]] = {}
    entries: dict[str, Any] = {}
    used = set(meanings.EVERYWHERE)
    for module in upstream_modules():
        with standing_in(module):
            reads[module] = module_reads(module, CONFIGS[module])
            names = [module, *(name for name, by in meanings.OWN_TYPES.items() if by == module)]
            for entry in names:
                if entry in meanings.TEXT_ENTRIES:
                    entries[entry] = {"part": "text_config", "text": meanings.TEXT_ENTRIES[entry]}
                    continue
                theirs = known(meanings.CLASSES.get(entry, entry))
                entry_rules: dict[str, Any] = {
                    "rope": rotary(module, CONFIGS[module], reads[module], theirs.theta if theirs else None)
                }
                entry_rules["unread"] = unread(module, set(reads[module]), entry)
                entry_rules["reads"] = sorted(meanings.EVERYWHERE.keys() & set(reads[module]))
                if "text_config" in reads[module]:
                    entry_rules["part"] = "text_config"
                entries[entry] = entry_rules
                used |= entry_rules["unread"].keys()
        print(module, file=sys.stderr, flush=True)
    table = {
        "mlx_lm": version("mlx-lm"),
        "transformers": version("transformers"),
        "types": {**MODEL_REMAPPING, **{name: name for name in meanings.OWN_TYPES}},
        "architectures": [[*names, module] for names, module in MODEL_ARCHITECTURE_REMAPPING.items()],
        "meanings": {field: text for field, text in sorted(meanings.MEANINGS.items()) if field in used},
        "everywhere": {field: {"same": values} for field, values in meanings.EVERYWHERE.items()},
        "modules": entries,
    }
    return table, reads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the files are not what is found")
    options = parser.parse_args()
    table, reads = make()
    texts = {TABLE: _json(table), READS: json.dumps(reads, indent=0, sort_keys=True) + "\n"}
    for path, text in texts.items():
        if options.check and path.read_text() != text:
            sys.exit(f"{path.relative_to(ROOT)} is not what is found: python benchmarks/config_fields.py")
        if not options.check:
            path.write_text(text)
    fields = sum(len(entry.get("unread", ())) for entry in table["modules"].values())
    print(f"{len(table['modules'])} entries, {fields} fields")


def _json(table: dict[str, Any]) -> str:
    """One module a line, so that a difference can be read."""
    modules = table["modules"]
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(modules[name], sort_keys=True)}" for name in sorted(modules))
    head = json.dumps({**table, "modules": None}, indent=1, sort_keys=True)
    return head.replace('"modules": null', f'"modules": {{\n{lines}\n }}') + "\n"


if __name__ == "__main__":
    main()
