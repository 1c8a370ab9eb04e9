"""Translating the rotary embedding in config.json from transformers 5 to the names that an mlx-lm module reads.

transformers 5 keeps base, kind of scaling and share of dimensions in `rope_parameters`, in one object or in one for
each kind of layer. Most modules read `rope_theta`, `rope_scaling` and `partial_rotary_factor` beside it.
Source: transformers/modeling_rope_utils.py, RotaryEmbeddingConfigMixin (which field is read first) and the functions in
ROPE_INIT_FUNCTIONS (what each key means); mlx_lm/models/rope_utils.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PARAMETERS = "rope_parameters"
SCALING = "rope_scaling"
# Kinds that scale nothing. In mrope, positions of text are the same in all three sections.
_UNSCALED = ("default", "mrope")
# Synonyms of kinds of scaling.
_SAME_KIND = {"su": "longrope", "deepseek_yarn": "yarn", "telechat3-yarn": "yarn"}
_LAYERS = ("full_attention", "sliding_attention")
# The length a model was trained for, which some scalings need; without it transformers takes the model's own.
_ORIGINAL = "original_max_position_embeddings"
_NEED_ORIGINAL = ("yarn", "llama3", "longrope")
_TOLERANCE = 1e-6
_MAX_SHOWN = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadField:
    """A field that changes numbers but that the module never reads.

    Attributes:
        name: Its dotted path in config.json.
        why: What the value means, in a sentence.
        until: Positions up to which it changes nothing; None if it changes all.
    """

    name: str
    value: Any
    why: str
    until: int | None = None


@dataclass(slots=True, kw_only=True)
class Rotary:
    """The translation of a rotary embedding's fields.

    Attributes:
        changes: Values to set, by dotted path.
        notes: Remarks for the reader of a plan.
        unread: Fields that cannot be translated.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unread: list[UnreadField] = field(default_factory=list)


def read_rotary(part: Mapping[str, Any], rope: Mapping[str, Any] | None) -> Rotary:
    """Translate a rotary embedding for one module.

    Args:
        part: The decoder's configuration.
        rope: How the module reads it, from the table; None if the module has no rotary embedding.
    """
    rotary = Rotary()
    if rope is None:
        return rotary
    given, scaling = _object(part.get(PARAMETERS)), _object(part.get(SCALING))
    is_nested = any(isinstance(value, dict) for value in given.values())
    if rope.get("nested"):
        if given and not is_nested:
            why = "this module expects one rotary embedding for each kind of layer, and uses its own defaults instead"
            rotary.unread.append(UnreadField(name=PARAMETERS, value=dict(given), why=why))
        if (kind := _kind(scaling)) not in _UNSCALED:
            why = f"scaling of the rotary embedding, which this module reads only by kind of layer, from {PARAMETERS}"
            rotary.unread.append(UnreadField(name=f"{SCALING}.rope_type", value=kind, why=why))
        return rotary
    main = _main(given, rope, rotary) if is_nested else dict(given)
    if main is None:
        return rotary
    if disagreement := _disagreement(main, scaling):
        why = f"it and {PARAMETERS} disagree on {disagreement}"
        rotary.unread.append(UnreadField(name=SCALING, value=dict(scaling), why=why))
        return rotary
    both = {**main, **scaling}
    _theta(part, given, both, rope, rotary)
    _scaling(part, given, main, scaling, both, rope, rotary)
    _partial(part, main, both, rope, rotary)
    return rotary


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; transformers' tagged infinities count as infinities."""
    one, other = _untagged(one), _untagged(other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other or (math.isfinite(one) and math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=0.0))
    return bool(one == other)


def at(part: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None if there is none."""
    value: Any = part
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def shown(value: Any) -> str:
    """Format a JSON value for a message: ASCII on one line, of limited length."""
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _main(given: Mapping[str, Any], rope: Mapping[str, Any], rotary: Rotary) -> dict[str, Any] | None:
    """The embedding of full-attention layers, from one for each kind of layer; None if the module cannot express it."""
    entries = {name: dict(value) for name, value in given.items() if isinstance(value, dict)}
    local_name = rope.get("local")
    if local_name is None:
        kinds = [_plain(entry) for entry in entries.values()]
        if any(kind != kinds[0] for kind in kinds):
            why = "layers differ in their rotary embeddings, but this module uses one for all layers"
            rotary.unread.append(UnreadField(name=PARAMETERS, value=dict(given), why=why))
            return None
        return next(iter(entries.values()))
    main, local = (entries.get(name, {}) for name in _LAYERS)
    if (kind := _kind(local)) not in _UNSCALED:
        why = "this module does not scale the rotary embedding of layers with a sliding window"
        rotary.unread.append(UnreadField(name=f"{PARAMETERS}.{_LAYERS[1]}.rope_type", value=kind, why=why))
    if (theta := local.get("rope_theta")) is not None:
        if local_name != "rope_theta":
            rotary.changes[local_name] = theta
        elif not same(theta, main.get("rope_theta", theta)):
            why = "this module uses one base for all layers"
            rotary.unread.append(UnreadField(name=f"{PARAMETERS}.{_LAYERS[1]}.rope_theta", value=theta, why=why))
    return main


def _theta(
    part: Mapping[str, Any], given: Mapping[str, Any], both: Mapping[str, Any], rope: Mapping[str, Any], rotary: Rotary
) -> None:
    name, top = rope.get("theta"), part.get("rope_theta")
    theta = both.get("rope_theta")
    where = f"{PARAMETERS}.rope_theta"
    if theta is None:
        where = "rope_theta"
        theta = top
        if theta is None and given:
            theta = rope.get("default_theta") if name is None or at(part, name) is None else None
    if theta is None:
        return
    if "fixed" in rope:
        if not same(theta, rope["fixed"]):
            why = f"this module's base is always {rope['fixed']:g}"
            rotary.unread.append(UnreadField(name=where, value=theta, why=why))
    elif name is None:
        if not same(given.get("rope_theta"), theta):
            rotary.changes[PARAMETERS] = {"rope_type": "default", **given, "rope_theta": theta}
    elif not same(at(part, name), theta):
        if where == "rope_theta" and name != "rope_theta" and at(part, name) is not None:
            why = f"this module reads {name}, which is {shown(at(part, name))}"
            rotary.unread.append(UnreadField(name=where, value=theta, why=why))
            return
        if (before := at(part, name)) is not None:
            rotary.notes.append(
                f"{name} is changed from {shown(before)} to the value in {PARAMETERS}, {shown(theta)}, as in "
                f"transformers"
            )
        rotary.changes[name] = theta


def _scaling(
    part: Mapping[str, Any],
    given: Mapping[str, Any],
    main: Mapping[str, Any],
    scaling: Mapping[str, Any],
    both: Mapping[str, Any],
    rope: Mapping[str, Any],
    rotary: Rotary,
) -> None:
    spelled = _kind(both)
    if spelled in _UNSCALED:
        if rope.get("needs_scaling") and given and SCALING not in part:
            rotary.changes[SCALING] = None
        return
    types, native_types = rope.get("types", []), rope.get("native_types", [])
    kind = _SAME_KIND.get(spelled, spelled) if spelled not in types else spelled
    named = {"type": spelled, "rope_type": spelled}
    if _kind(scaling) not in _UNSCALED and kind in types:
        keys = rope.get("keys", list(named))
        if not any(key in scaling for key in keys):
            rotary.changes[SCALING] = {**scaling, **named}
    elif kind in native_types:
        # transformers prefers rope_scaling if it is present; the module reads rope_parameters only.
        if scaling:
            now = rotary.changes.get(PARAMETERS, given)
            rotary.changes[PARAMETERS] = {**now, **scaling, **named}
    elif kind in types:
        translated = {key: value for key, value in both.items() if key not in ("rope_theta", "partial_rotary_factor")}
        translated |= named
        if kind in _NEED_ORIGINAL:
            trained = part.get(_ORIGINAL) or translated.get(_ORIGINAL) or part.get("max_position_embeddings")
            if trained is not None:
                translated[_ORIGINAL] = trained
                if kind == "longrope" and part.get(_ORIGINAL) is None:
                    rotary.changes[_ORIGINAL] = trained
        if translated != scaling:
            rotary.changes[SCALING] = translated
    else:
        where = SCALING if _kind(scaling) not in _UNSCALED else PARAMETERS
        known = ", ".join(types or native_types) or "none"
        why = f"scaling of the rotary embedding; this module supports: {known}"
        rotary.unread.append(UnreadField(name=f"{where}.rope_type", value=spelled, why=why))
        return
    _factors(part, main, both, kind, rope, rotary)


def _factors(
    part: Mapping[str, Any],
    main: Mapping[str, Any],
    both: Mapping[str, Any],
    kind: str,
    rope: Mapping[str, Any],
    rotary: Rotary,
) -> None:
    """The keys of a scaling that mlx-lm's implementation never reads."""
    where = PARAMETERS if main else SCALING
    attention, factor = both.get("attention_factor"), _number(both.get("factor"))
    trained = _number(part.get(_ORIGINAL)) or _number(both.get(_ORIGINAL))
    if kind == "longrope":
        whole = _number(part.get("max_position_embeddings"))
        factor = whole / trained if whole and trained else None
        if both.get("short_factor") != both.get("long_factor"):
            rotary.notes.append(
                f"mlx-lm never reads {where}.short_factor: it uses long_factor for texts shorter than {trained} "
                f"positions too"
            )
    if attention is not None and kind in ("yarn", "longrope"):
        computed = None
        if factor is not None:
            growth = math.log(max(factor, 1.0))
            computed = 0.1 * growth + 1 if kind == "yarn" else math.sqrt(1 + growth / math.log(max(trained or 2, 2)))
        if computed is None or not same(attention, computed):
            why = f"scale of the attention, for which mlx-lm computes {computed}"
            rotary.unread.append(UnreadField(name=f"{where}.attention_factor", value=attention, why=why))
    if both.get("truncate") is False and kind == "yarn":
        why = "the borders between scaled and unscaled frequencies, which mlx-lm rounds to whole dimensions"
        if "truncate" in rope.get("noted", []):
            rotary.notes.append(f"mlx-lm never reads {where}.truncate (false): {why}")
        else:
            rotary.unread.append(UnreadField(name=f"{where}.truncate", value=False, why=why))


def _partial(
    part: Mapping[str, Any], main: Mapping[str, Any], both: Mapping[str, Any], rope: Mapping[str, Any], rotary: Rotary
) -> None:
    name, top = rope.get("partial"), part.get("partial_rotary_factor")
    share = both.get("partial_rotary_factor")
    where = f"{PARAMETERS}.partial_rotary_factor" if share is not None else "partial_rotary_factor"
    if (share := _number(top if share is None else share)) is None:
        return
    if name is not None:
        if not same(at(part, name), share):
            if where == "partial_rotary_factor" and at(part, name) is not None:
                why = f"this module reads {name}, which is {shown(at(part, name))}"
                rotary.unread.append(UnreadField(name=where, value=share, why=why))
                return
            rotary.changes[name] = share
        return
    if rope.get("native_partial"):
        if main.get("partial_rotary_factor") is None and main:
            rotary.changes[PARAMETERS] = {**rotary.changes.get(PARAMETERS, main), "partial_rotary_factor": share}
        return
    why = "share of the dimensions that rotate, which this module never reads"
    if any(same(share, value) for value in rope.get("partials", [])):
        return
    if (dims := rope.get("dims")) is not None:
        if any(part.get(dims) == int(size * share) for size in _head_sizes(part)):
            return
        why = f"share of the dimensions that rotate; this module reads {dims}, which is {shown(part.get(dims))}"
    rotary.unread.append(UnreadField(name=where, value=share, why=why))


def _head_sizes(part: Mapping[str, Any]) -> list[int]:
    """Candidates for the head size: all dimensions, or those of a head whose parts differ."""
    sizes = [part.get("head_dim"), _sum(part.get("qk_nope_head_dim"), part.get("qk_rope_head_dim"))]
    hidden, heads = part.get("hidden_size"), part.get("num_attention_heads")
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        sizes.append(hidden // heads)
    return [size for size in sizes if isinstance(size, int)]


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _sum(one: Any, other: Any) -> int | None:
    return one + other if isinstance(one, int) and isinstance(other, int) else None


def _disagreement(main: Mapping[str, Any], scaling: Mapping[str, Any]) -> str:
    if not main or not scaling:
        return ""
    one, other = _plain(main), _plain(scaling)
    if one["rope_type"] in _UNSCALED and other["rope_type"] not in _UNSCALED and "rope_type" not in main:
        one.pop("rope_type")
    keys = [key for key in sorted(one.keys() & other.keys()) if not same(one[key], other[key])]
    return ", ".join(keys)


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An embedding with its kind under a single name."""
    return {**{key: value for key, value in entry.items() if key != "type"}, "rope_type": _kind(entry)}


def _kind(entry: Mapping[str, Any]) -> str:
    return str(entry.get("rope_type") or entry.get("type") or "default")


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _untagged(value: Any) -> Any:
    return float(value["__float__"]) if isinstance(value, dict) and set(value) == {"__float__"} else value
