"""config.json as its mlx-lm module reads it: which fields are translated, and which are never read.

`config_fields.json` beside this file is written by `benchmarks/config_fields.py`. It lists, by model type, the fields
that change a model's numbers but that the module never reads, and when they change nothing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from shardhub.checkpoint.rotary import UnreadField, at, read_rotary, same, shown
from shardhub.errors import UnsupportedModel

_TABLE = Path(__file__).with_name("config_fields.json")
_FULL = "full_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A configuration as a module reads it.

    Attributes:
        config: config.json, with added fields that the module reads in place of others.
        notes: The added fields, and other remarks for the reader of a plan.
        unread: Fields that change numbers but that the module never reads.
    """

    config: Mapping[str, Any]
    notes: tuple[str, ...]
    unread: tuple[UnreadField, ...]

    def ignored(self, names: Collection[str]) -> tuple[str, ...]:
        """Paths of the unread fields that these names refer to."""
        return tuple(sorted(field.name for field in self.unread if is_named(field.name, names)))

    def later(self, context: int) -> tuple[str, ...]:
        """Notes on unread fields that change nothing in sessions of `context` positions."""
        return tuple(
            f"config.json: mlx-lm never reads {_listed([field])}: {field.why}. That changes nothing here, where "
            f"sessions have {context} positions"
            for field in self.unread
            if not _matters(field, context)
        )

    def check(self, where: str, context: int, ignored: Collection[str] = ()) -> None:
        """Refuse a configuration with unread fields.

        Args:
            where: The model, for messages.
            context: Positions per session.
            ignored: Names of fields that are to be ignored.

        Raises:
            UnsupportedModel: A field changes numbers within the context and is not to be ignored.
        """
        left = [field for field in self.unread if _matters(field, context) and not is_named(field.name, ignored)]
        if not left:
            return
        names = " ".join(f"`ignore_fields` {field.name}" for field in left)
        raise UnsupportedModel(
            f"mlx-lm would not compute the numbers of {where}: it never reads {_listed(left)}.",
            why=" ".join(f"{field.name}: {field.why}." for field in left),
            hint=f"To use what mlx-lm computes, and have the pipeline record these fields as ignored, add {names}",
        )


def read_fields(config: Mapping[str, Any]) -> Reading:
    """Translate a configuration for the mlx-lm module that runs it, and find the fields that the module never reads."""
    key, entry = _entry(config)
    if entry is None:
        made_with = _table()["mlx_lm"]
        unknown = (
            f"the fields that mlx-lm's module for {key!r} never reads are not known, so none are refused or "
            f"translated (the table was made with mlx-lm {made_with})"
        )
        return Reading(config=config, notes=(unknown,) if isinstance(key, str) else (), unread=())
    nested = entry.get("part")
    inner = config.get(nested) if nested else None
    part, prefix = (inner, f"{nested}.") if isinstance(inner, dict) and inner else (config, "")
    if "text" in entry:
        by_type = entry["text"]
        entry = _table()["modules"][by_type.get(str(part.get("model_type")), by_type[""])]
    rotary = read_rotary(part, entry["rope"])
    changes, unread = dict(rotary.changes), list(rotary.unread)
    for field, rule in _rules(entry).items():
        value = at(part, field)
        if value is None:
            continue
        if (name := rule.get("copy")) is not None:
            if part.get(name) is None:
                changes[name] = value
            elif not same(part[name], value):
                why = f"{_meaning(field)}; this module reads {name}, which is {shown(part[name])}"
                unread.append(UnreadField(name=field, value=value, why=why))
        elif (changing := _change(part, field, value, rule)) is not None:
            unread.append(changing)
    notes = [f"config.json: {note}" for note in rotary.notes]
    if changes:
        fields = ", ".join(f"{prefix}{name} = {shown(value)}" for name, value in changes.items())
        notes.insert(
            0,
            f"config.json: mlx-lm reads these fields under other names; they are set in the published "
            f"config.json: {fields}",
        )
        config = _changed(config, prefix, changes)
    full = tuple(replace(one, name=f"{prefix}{one.name}") for one in unread)
    return Reading(config=config, notes=tuple(notes), unread=full)


def warning(config: Mapping[str, Any], context: int) -> str:
    """One line about a published configuration that gives other numbers than the model; empty if it does not.

    Args:
        config: config.json of a pipeline or a shard.
    context: Positions per session.
    """
    reading = read_fields({key: value for key, value in config.items() if key != "shardhub"})
    if unread := [field for field in reading.unread if _matters(field, context)]:
        return f"its numbers are not the published model's: mlx-lm never reads {_listed(unread)} in config.json"
    if reading.config.keys() != config.keys() - {"shardhub"} or any(
        reading.config[key] != config[key] for key in reading.config
    ):
        return (
            "its numbers may not be the published model's: this pipeline was split before shardhub translated the "
            "fields of config.json that mlx-lm does not read. Split the model again"
        )
    return ""


def right_until(config: Mapping[str, Any], *, least: int) -> int | None:
    """Positions up to which a published configuration gives the model's numbers; None if no limit is known.

    Args:
        least: Limits below it are left out, because they were known when the model was split.
    """
    reading = read_fields({key: value for key, value in config.items() if key != "shardhub"})
    limits = [field.until for field in reading.unread if field.until is not None and field.until >= least]
    return min(limits, default=None)


def is_named(path: str, names: Collection[str]) -> bool:
    """Whether a field's path, or a part of it between dots, is one of these names."""
    return any(f".{name}." in f".{path}." for name in names)


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(_TABLE.read_text())
    return table


def _entry(config: Mapping[str, Any]) -> tuple[Any, dict[str, Any] | None]:
    """The table's entry for a configuration's model type, mapped to a module as mlx-lm maps it."""
    table, model_type = _table(), config.get("model_type")
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else [architectures]
    for kind, architecture, module in table["architectures"]:
        if kind == model_type and architecture in names:
            return module, table["modules"].get(module)
    key = table["types"].get(model_type, model_type) if isinstance(model_type, str) else model_type
    return key, table["modules"].get(key) if isinstance(key, str) else None


def _rules(entry: Mapping[str, Any]) -> dict[str, Any]:
    everywhere = {name: rule for name, rule in _table()["everywhere"].items() if name not in entry["reads"]}
    return {**everywhere, **entry["unread"]}


def _matters(field: UnreadField, context: int) -> bool:
    return field.until is None or field.until < context


def _change(part: Mapping[str, Any], field: str, value: Any, rule: Mapping[str, Any]) -> UnreadField | None:
    """The field if its value changes anything."""
    if "window" in rule:
        return _window(part, field, value, rule)
    if "pattern" in rule:
        return _pattern(part, field, value, rule)
    if any(same(value, computed) for computed in rule["same"]):
        return None
    start = part.get(rule["beyond"]) if "beyond" in rule else None
    if isinstance(start, int) and isinstance(end := part.get("max_position_embeddings"), int) and start >= end:
        return None
    computed = " or ".join(shown(computed) for computed in rule["same"]) or "without it"
    why = f"{_meaning(field)}; this module computes {computed}"
    return UnreadField(name=field, value=value, why=why, until=start - 1 if isinstance(start, int) else None)


def _window(part: Mapping[str, Any], field: str, value: Any, rule: Mapping[str, Any]) -> UnreadField | None:
    """The field if an attention window changes anything: not if it is off, no layer has it, or no text exceeds it."""
    kinds = part.get("layer_types")
    kinds = kinds if isinstance(kinds, list) else []
    if not isinstance(value, int) or value <= 0 or part.get("use_sliding_window") is False:
        return None
    if kinds and ("unless" in rule or not any("sliding" in str(kind) or "chunk" in str(kind) for kind in kinds)):
        return None
    if "asked" in rule and not (kinds or part.get("use_sliding_window") is True):
        return None
    if not kinds and isinstance(first := part.get("max_window_layers"), int):
        layers = part.get("num_hidden_layers")
        if isinstance(layers, int) and first >= layers:
            return None
    if isinstance(longest := part.get("max_position_embeddings"), int) and value >= longest:
        return None
    why = f"{_meaning(field)}; this module has none, so only texts of up to {value} positions get the model's numbers"
    return UnreadField(name=field, value=value, why=why, until=value)


def _pattern(part: Mapping[str, Any], field: str, value: Any, rule: Mapping[str, Any]) -> UnreadField | None:
    """The field if its kinds of layers differ from those of the field that the module reads instead."""
    if not isinstance(value, list):
        return None
    source = at(part, rule["pattern"]) if rule["pattern"] else None
    source = rule["default"] if source is None else source
    is_full: list[bool]
    if isinstance(source, int) and source > 0:
        is_full = [(index + 1) % source == 0 for index in range(len(value))]
    elif isinstance(source, str) and source:
        is_full = [source[index % len(source)] == "G" for index in range(len(value))]
    elif isinstance(source, list) and rule["pattern"].endswith("full_attn_layers"):
        is_full = [index + 1 in source for index in range(len(value))]
    elif isinstance(source, list) and len(source) == len(value):
        is_full = [mark == 0 for mark in source]
    else:
        return None
    if [kind == _FULL for kind in value] == is_full:
        return None
    known = f"{rule['pattern'] or 'a fixed pattern'} = {shown(source)}"
    return UnreadField(name=field, value=value, why=f"{_meaning(field)}, which this module takes from {known}")


def _meaning(field: str) -> str:
    return str(_table()["meanings"].get(field, "a setting of the model"))


def _changed(config: Mapping[str, Any], prefix: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(dict(config))
    for path, value in changes.items():
        *parents, name = f"{prefix}{path}".split(".")
        place = result
        for parent in parents:
            inner = place.get(parent)
            inner = inner if isinstance(inner, dict) else {}
            place[parent] = inner
            place = inner
        place[name] = copy.deepcopy(value)
    return result


def _listed(fields: Collection[UnreadField]) -> str:
    return ", ".join(f"{field.name} ({shown(field.value)})" for field in fields)
