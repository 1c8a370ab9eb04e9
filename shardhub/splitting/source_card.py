"""What our cards take from a model's own card: licence, gate, language, base model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardhub.errors import FormatError
from shardhub.naming import CARD_FILE, REPO_PATTERN
from shardhub.regular_files import read_file

# A value of a card's front matter.
Value = str | bool | list["Value"] | dict[str, "Value"]

_MAX_FRONT_MATTER_BYTES = 64 << 10
_MAX_ITEMS = 100
_MAX_DEPTH = 4
# YAML accepts keys of at most 1,024 characters, escapes included.
_MAX_KEY_CHARS = 100
_LICENCE_FIELDS = ("license", "license_name", "license_link")
_GATE_PREFIX = "extra_gated_"
# Licence identifiers that the Hub accepts; its card validation refuses a commit with others.
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{1,8}){0,3}|code|multilingual")
_PIPELINE_TAG = re.compile(r"[a-z0-9]+(-[a-z0-9]+){0,7}")
_BASE_MODEL = re.compile(rf"{REPO_PATTERN.strip('^$')}|[A-Za-z0-9][A-Za-z0-9._-]{{0,95}}")
# Names of licence texts in practice; the texts are copied along with the weights.
_LICENCE_FILE = re.compile(
    r"(licen[cs]e|notice|copying|use[-_. ]?policy|acceptable[-_. ]?use[-_. ]?policy|terms)([-_ ][a-z0-9_ -]{0,64})?"
    r"(\.(txt|md|rst|pdf))?",
    re.IGNORECASE,
)
_MAX_LICENCE_BYTES = 1 << 20
# Licence values that carry no information by themselves.
_UNKNOWN_LICENCES = {"unknown", "other"}


def source_fields(folder: Path) -> dict[str, Value]:
    """Read licence, gate, language, base model and task from the front matter of a model's README.md.

    The card is advice, not identity: a value that cannot be read, or that the Hub does not accept for its field, is
    left out; a licence with an unknown kind of name becomes `other` with that name.
    """
    fields = _front_matter(folder / CARD_FILE)
    fields_kept: dict[str, Value] = {}
    for name in _LICENCE_FIELDS:
        if isinstance(value := fields.get(name), str) and value:
            fields_kept[name] = value
    if isinstance(licence := fields_kept.get("license"), str) and not _LICENCE.fullmatch(licence):
        fields_kept = {**fields_kept, "license": "other", "license_name": fields_kept.get("license_name", licence)}
    for name, value in fields.items():
        if name.startswith(_GATE_PREFIX) and len(name) < 64 and (kept := _kept(value)) is not None:
            fields_kept[name] = kept
    # YAML 1.1 reads the language code of Norwegian, no, as false.
    languages = ["no" if item is False else item for item in _listed(fields.get("language"))]
    for name, values, pattern in (
        ("language", languages, _LANGUAGE),
        ("base_model", _listed(fields.get("base_model")), _BASE_MODEL),
        ("pipeline_tag", _listed(fields.get("pipeline_tag"))[:1], _PIPELINE_TAG),
    ):
        good = [item for item in values if isinstance(item, str) and pattern.fullmatch(item)][:_MAX_ITEMS]
        if good:
            fields_kept[name] = good[0] if isinstance(fields.get(name), str) or name == "pipeline_tag" else list(good)
    return fields_kept


def is_licence_file(name: str) -> bool:
    """Whether a file's name is that of a licence text."""
    return _LICENCE_FILE.fullmatch(name) is not None


def licence_files(folder: Path) -> dict[str, bytes]:
    """Read the licence texts beside a model, by file name.

    Raises:
        FormatError: A file is larger than any licence.
    """
    files = {}
    for path in sorted(folder.iterdir()):
        if not is_licence_file(path.name) or not path.is_file():
            continue
        if (size := path.stat().st_size) > _MAX_LICENCE_BYTES:
            raise FormatError(f"{path} is too large for a licence.", why=f"It has {size} bytes.")
        files[path.name] = read_file(path)
    return files


def reservations(fields: Mapping[str, Value], *, gated: bool) -> list[str]:
    """Reasons not to publish the model to everyone without asking; empty if there are none.

    Args:
        fields: The result of `source_fields`.
        gated: Whether the source's repo gives access on request only.
    """
    reasons = []
    if gated or any(name.startswith(_GATE_PREFIX) for name in fields):
        reasons.append("the source is gated: its terms must be accepted before its weights can be downloaded")
    licence = fields.get("license")
    if not isinstance(licence, str):
        reasons.append("the source does not state a licence")
    elif licence.lower() in _UNKNOWN_LICENCES:
        name = fields.get("license_name")
        reasons.append(f"the source's licence is {str(name)[:80] if name else licence!r}, which shardhub does not know")
    return reasons


def _front_matter(path: Path) -> Mapping[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        text = read_file(path, _MAX_FRONT_MATTER_BYTES).decode("utf-8", "replace")
    except OSError:
        return {}
    match = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    if match is None:
        return {}
    try:
        fields = yaml.safe_load(match.group(1))
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return {name: value for name, value in fields.items() if isinstance(name, str)} if isinstance(fields, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _kept(value: Any, depth: int = 0) -> Value | None:
    """The value if it consists of texts, booleans, lists and mappings of texts only; otherwise None."""
    if isinstance(value, str | bool):
        return value
    if depth >= _MAX_DEPTH or not isinstance(value, list | dict) or not 0 < len(value) <= _MAX_ITEMS:
        return None
    if isinstance(value, list):
        items = [_kept(item, depth + 1) for item in value]
        return None if None in items else [item for item in items if item is not None]
    if not all(isinstance(name, str) and len(name) <= _MAX_KEY_CHARS for name in value):
        return None
    pairs = {name: _kept(item, depth + 1) for name, item in value.items()}
    return None if None in pairs.values() else {name: item for name, item in pairs.items() if item is not None}
