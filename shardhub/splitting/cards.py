"""Model cards and configurations, rendered from templates/; every value from outside comes out as data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shardhub.manifest import Manifest, ShardHint, Stage
from shardhub.naming import CARD_FILE
from shardhub.resources import resource

_MAX_FRONT_MATTER_BYTES = 64 << 10
_MAX_TEXT = 200
# Fields of a source's card that go on into ours, when they are text or lists of text.
_FIELDS = ("license", "license_name", "license_link", "language", "base_model")
_MAX_ITEMS = 100
# What YAML 1.1 takes for a line break or refuses in a text.
_YAML_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#!|<>&~$])")
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")

Value = str | list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """A row of a card's table of stages.

    Attributes:
        name: Name of the shard's repo or folder.
    """

    index: int
    name: str
    start: int
    stop: int
    size_bytes: int

    @property
    def layers(self) -> str:
        """First and last layer."""
        return f"{self.start} to {self.stop - 1}" if self.stop - self.start > 1 else str(self.start)


def source_fields(folder: Path) -> dict[str, Value]:
    """Licence, language and base model from the front matter of a model's README.md; empty where there is none.

    The card is advice, not identity: what cannot be read is left out.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        with (folder / CARD_FILE).open("rb") as file:
            text = file.read(_MAX_FRONT_MATTER_BYTES).decode("utf-8", "replace")
    except OSError:
        return {}
    found = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    if found is None:
        return {}
    try:
        fields = yaml.safe_load(found.group(1))
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return {name: fields[name] for name in _FIELDS if _is_value(fields.get(name))} if isinstance(fields, dict) else {}


def front_matter(fields: Mapping[str, Value]) -> str:
    """YAML lines for these fields; every YAML reader gets the very same texts back."""
    lines = []
    for name, value in fields.items():
        if isinstance(value, str):
            lines.append(f"{name}: {_yaml_text(value)}\n")
        else:
            lines.append(f"{name}:\n" + "".join(f"- {_yaml_text(item)}\n" for item in value))
    return "".join(lines)


def shard_card(
    stage: Stage,
    hint: ShardHint,
    *,
    source: str,
    fields: Mapping[str, Value],
    stages: Sequence[StageSummary],
) -> str:
    """README.md of a shard. It names no base model: a shard is not a model of its own on the Hub.

    Args:
        stage: Its stage.json.
        hint: Index, digest and pipeline.
        source: Id or folder name of the model.
        fields: From `source_fields`.
        stages: All stages of the cut.
    """
    return _render(
        "shard.md.j2",
        name=stages[hint.index].name,
        index=hint.index,
        num_layers=stage.num_layers,
        num_files=len(stage.weight_files),
        size_bytes=stage.size_bytes,
        source=source,
        pipeline=hint.pipeline,
        digest=hint.stage_digest,
        stages=stages,
        front_matter=front_matter({name: value for name, value in fields.items() if name != "base_model"}),
    )


def pipeline_card(
    manifest: Manifest, *, name: str, source: str, fields: Mapping[str, Value], stages: Sequence[StageSummary]
) -> str:
    """README.md of a pipeline; the base model is the source's repo, or what the source's own card names."""
    based = {"base_model": manifest.source.repo} if manifest.source.repo is not None else {}
    return _render(
        "pipeline.md.j2",
        name=name,
        source=source,
        stages=stages,
        pipeline_id=manifest.pipeline_id,
        front_matter=front_matter({**fields, **based}),
    )


def shard_config(config: Mapping[str, Any], hint: ShardHint) -> str:
    """config.json of a shard: the source's, with our block."""
    return _render("config.json.j2", config={**config, "shardhub": hint.model_dump(mode="json")})


def one_line(value: str) -> str:
    """Text fit for a line of Markdown: no breaks, no markup, no HTML, at most 200 characters."""
    flat = _BREAKS.sub(" ", value.encode("utf-8", "replace").decode()).strip()
    short = flat if len(flat) <= _MAX_TEXT else f"{flat[: _MAX_TEXT - 3]}..."
    return _MARKDOWN.sub(r"\\\1", short).replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(resource("templates")),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        # Not HTML: the filters `text` and `json`, and `front_matter`, make values safe for where they stand.
        autoescape=False,  # noqa: S701
    )
    environment.filters["text"] = one_line
    environment.filters["gb"] = lambda size: f"{size / 1e9:.2f} GB" if size >= 10**8 else f"{size / 1e6:.2f} MB"
    environment.filters["json"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    return environment.get_template(template).render(values)


def _yaml_text(value: str) -> str:
    # A JSON string is a YAML text in double quotes, but for a few characters YAML 1.1 does not take as they are.
    quoted = json.dumps(value.encode("utf-8", "replace").decode(), ensure_ascii=False)
    return _YAML_ESCAPED.sub(lambda found: f"\\u{ord(found.group()):04x}", quoted)


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        return 0 < len(value) <= _MAX_ITEMS and all(isinstance(item, str) for item in value)
    return isinstance(value, str)
