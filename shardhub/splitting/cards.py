"""Model cards and configurations, rendered from templates/; values from outside are escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shardhub.checkpoint.quantisation import quantisation_text
from shardhub.manifest import Manifest, Proof, ShardHint, Source, SourceLocation, Stage
from shardhub.naming import PICTURE_FILE
from shardhub.parity import UNMEASURED, Numbers
from shardhub.resources import resource
from shardhub.sizes import size_text
from shardhub.splitting.source_card import Value

# The tag of every pipeline's card, by which pipelines are listed.
PIPELINE_TAG = "shardhub-pipeline"
_MAX_TEXT = 200
# The parity record's line contains several texts that describe a machine.
_MAX_PARITY_TEXT = 500
_PARITY_MARKS = ("<!-- parity -->", "<!-- /parity -->")
# Fields of the pipeline's card only: a shard alone is not a model, has no place in a model tree, and performs no task.
_OF_THE_PIPELINE = ("base_model", "base_model_relation", "pipeline_tag")
# The Hub knows adapter, finetune, merge and quantized. Only the last means the same model in another form, with nothing
# trained or merged. Without this field the Hub assumes a finetune.
_RELATION = "quantized"
# The task of every model that is split here.
_PIPELINE_TAG = "text-generation"
# Characters that YAML 1.1 treats as line breaks or refuses in a text.
_YAML_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
# What every paragraph of by_reference.md.j2 says, and the paragraph that it follows.
_BY_REFERENCE = "published by reference"
_INTRODUCTION = re.compile(r"cannot be loaded on its own\*\*.*?(?=\n\n)", re.DOTALL)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#!|<>&~$])")
# What a card says of computed tensors; see `_weights_text`.
_COMPUTED = re.compile(r"byte for byte, but (\d{1,9}) tensors? (?:is|are) what mlx-lm makes")
# Longest card of ours that is read back.
MAX_CARD_BYTES = 1 << 20
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """A row of a card's table of stages.

    Attributes:
        name: The shard's repo, or its folder's name.
        graph_hash: Hash of its computation, if that was proven.
    """

    index: int
    name: str
    start: int
    stop: int
    size_bytes: int
    graph_hash: str | None = None

    @property
    def layers(self) -> str:
        """First and last layer."""
        return f"{self.start} to {self.stop - 1}" if self.stop - self.start > 1 else str(self.start)


def front_matter(fields: Mapping[str, Value]) -> str:
    """Format fields as YAML lines from which every YAML reader gets the same values back.

    Names inside mappings have at most 100 characters, as `source_fields` ensures.
    """
    lines = []
    for name, value in fields.items():
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            lines.append(f"{name}:\n" + "".join(f"- {_yaml(item)}\n" for item in value))
        else:
            lines.append(f"{name}: {_yaml(value)}\n")
    return "".join(lines)


def shard_card(
    stage: Stage,
    hint: ShardHint,
    *,
    source: str,
    fields: Mapping[str, Value],
    stages: Sequence[StageSummary],
    numbers: Numbers = UNMEASURED,
    num_computed: int = 0,
    num_referenced: int = 0,
    on_hub: bool = False,
    hub: str | None = None,
) -> str:
    """Render README.md of a shard; it names no base model, because a shard is not a model of its own on the Hub.

    Args:
        stage: Its stage.json.
        hint: Index, digest and pipeline.
        source: Hub id or folder name of the model.
        fields: The result of `source_fields`.
        stages: All stages of the cut.
        numbers: What is known about the stages' numbers.
        num_computed: Number of tensors that are not copied from the source unchanged.
        num_referenced: Number of weight files that are left in the source.
        on_hub: Whether the names are repos, to which a card may link.
        hub: Name of the Hub that has the source, if it is another one.
    """
    return _render(
        "shard.md.j2",
        numbers=parity_line(numbers),
        inexact=hint.inexact,
        weights=_weights_text(stage.source, num_computed),
        on_hub=on_hub,
        name=stages[hint.index].name,
        index=hint.index,
        num_layers=stage.num_layers,
        num_files=len(stage.weight_files),
        by_reference=shard_reference(stage, num_referenced, on_hub=on_hub, hub=hub) if num_referenced else "",
        size_bytes=stage.size_bytes,
        source=source,
        pipeline=hint.pipeline,
        digest=hint.stage_digest,
        stages=stages,
        model_tag=f"- {model_tag(stage.catalogue_digest)}\n" if on_hub else "",
        front_matter=front_matter({name: value for name, value in fields.items() if name not in _OF_THE_PIPELINE}),
    )


def pipeline_card(
    manifest: Manifest,
    *,
    name: str,
    source: str,
    fields: Mapping[str, Value],
    stages: Sequence[StageSummary],
    proof: Proof | None = None,
    numbers: Numbers = UNMEASURED,
    num_computed: int = 0,
    on_hub: bool = False,
) -> str:
    """Render README.md of a pipeline; the base model is the source's repo, or the one that the source's card names.

    Args:
        manifest: Its shardhub.json.
        name: Its repo, or its folder's name.
        source: Hub id or folder name of the model.
        fields: The result of `source_fields`.
        stages: All stages of the cut.
        proof: One stage's proof, for its versions and device; None if the stages were not proven.
        numbers: What is known about the stages' numbers.
        num_computed: Number of tensors that are not copied from the source unchanged.
        on_hub: Whether the names are repos, to which a card may link.
    """
    joined: dict[str, Value] = {"pipeline_tag": _PIPELINE_TAG, **fields}
    if manifest.source.repo is not None:
        joined["base_model"] = manifest.source.repo
    if "base_model" in joined:
        joined["base_model_relation"] = _RELATION
    return _render(
        "pipeline.md.j2",
        tag=PIPELINE_TAG,
        name=name,
        source=source,
        source_repo=manifest.source.repo,
        commit=manifest.source.commit,
        num_layers=manifest.num_layers,
        size_bytes=sum(stage.size_bytes for stage in manifest.stages),
        stages=[(row, entry.digest) for row, entry in zip(stages, manifest.stages, strict=True)],
        pipeline_id=manifest.pipeline_id,
        by_reference=pipeline_reference(manifest, on_hub=on_hub) if manifest.format_version > 1 else "",
        proof=proof,
        numbers=parity_line(numbers),
        inexact=manifest.inexact,
        weights=_weights_text(manifest.source, num_computed),
        ignored_fields=manifest.ignored_fields,
        picture=PICTURE_FILE,
        on_hub=on_hub,
        front_matter=front_matter(joined),
    )


def parity_line(numbers: Numbers) -> str:
    """A card's line about the stages' numbers, between two marks by which it is found again."""
    return f"{_PARITY_MARKS[0]}{one_line(numbers.line, max_length=_MAX_PARITY_TEXT)}{_PARITY_MARKS[1]}"


def with_parity_line(card: str, numbers: Numbers) -> str:
    """Replace a card's line about the numbers; a card without such a line, or with several, is left unchanged."""
    start, end = (card.find(mark) for mark in _PARITY_MARKS)
    if start < 0 or end < start or any(card.count(mark) != 1 for mark in _PARITY_MARKS):
        return card
    return card[:start] + parity_line(numbers) + card[end + len(_PARITY_MARKS[1]) :]


def shard_reference(stage: Stage, num_referenced: int, *, on_hub: bool, hub: str | None = None) -> str:
    """A shard's paragraph about weight files that are left in the source.

    Args:
        stage: Its stage.json.
        num_referenced: Number of these weight files.
        on_hub: Whether the source's name is a repo, to which the card may link.
        hub: Name of the Hub that has it, if it is another one.
    """
    num_files = len(stage.weight_files)
    return _reference(stage.source, hub, num_files=num_files, num_referenced=num_referenced, on_hub=on_hub)


def pipeline_reference(manifest: Manifest, *, on_hub: bool) -> str:
    """A pipeline's paragraph about shards whose weights are left in the source."""
    places = (place for stage in manifest.stages for place in stage.locations if isinstance(place, SourceLocation))
    hub = next((place.hub for place in places), None)
    return _reference(manifest.source, hub, num_files=0, num_referenced=0, on_hub=on_hub)


def with_reference(card: str, paragraph: str) -> str:
    """Put a paragraph about weights that are left in the source into a card that was written without one."""
    if _BY_REFERENCE in card:
        return card
    match = _INTRODUCTION.search(card)
    if match is None:  # its owner has written another text
        return f"{card.rstrip()}\n\n{paragraph}\n"
    return f"{card[: match.end()]}\n\n{paragraph}{card[match.end() :]}"


def model_tag(catalogue_digest: str) -> str:
    """The tag shared by all shards of a model, whatever the cut; it finds those that hold its weight files already."""
    return f"shardhub-model-{catalogue_digest[:16]}"


def shard_config(config: Mapping[str, Any], hint: ShardHint) -> str:
    """Render config.json of a shard: the source's, with the `shardhub` block."""
    return _render("config.json.j2", config={**config, "shardhub": hint.model_dump(mode="json")})


def one_line(value: str, max_length: int = _MAX_TEXT) -> str:
    """Make a text safe for a line of Markdown: no line breaks, markup or HTML, at most `max_length` characters."""
    flat = _BREAKS.sub(" ", value.encode("utf-8", "replace").decode()).strip()
    short = flat if len(flat) <= max_length else f"{flat[: max_length - 3]}..."
    return _MARKDOWN.sub(r"\\\1", short).replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(resource("templates")),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        # Not HTML: the filters `text` and `json`, and `front_matter`, make values safe for their context.
        autoescape=False,  # noqa: S701
    )
    environment.filters["text"] = one_line
    environment.filters["link"] = _link
    environment.filters["gb"] = size_text
    environment.filters["json"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    return environment.get_template(template).render(values)


def _reference(source: Source, hub: str | None, *, on_hub: bool, **values: Any) -> str:
    values |= {"repo": source.repo, "commit": source.commit, "hub": hub, "on_hub": on_hub and hub is None}
    return _render("by_reference.md.j2", **values).strip()


def _weights_text(source: Source, num_computed: int) -> str:
    if source.quantized is not None:
        return (
            "The weights are the source's, quantised while it was split as `mlx_lm.convert` does "
            f"({quantisation_text(source.quantized)})"
        )
    text = "The weights are those of the source, byte for byte"
    if not num_computed:
        return text
    tensors = "1 tensor is" if num_computed == 1 else f"{num_computed} tensors are"
    return f"{text}, but {tensors} what mlx-lm makes of the source's when it loads it"


def num_computed_in(card: str) -> int:
    """Number of computed tensors that one of our cards states."""
    match = _COMPUTED.search(card)
    return int(match[1]) if match else 0


def _link(name: str, on_hub: bool) -> str:
    """Format a name as code, and as a link if it is a repo; naming rules keep both free of markup."""
    return f"[`{name}`](/{name})" if on_hub else f"`{name}`"


def _yaml(value: Value) -> str:
    """Format a value in YAML's flow style, which is JSON except for a few characters that YAML 1.1 needs escaped."""
    quoted = json.dumps(_encodable(value), ensure_ascii=False)
    return _YAML_ESCAPED.sub(lambda match: f"\\u{ord(match.group()):04x}", quoted)


def _encodable(value: Value) -> Value:
    """The same value without unpaired surrogates, which UTF-8 cannot encode."""
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_clean(name): _encodable(item) for name, item in value.items()}
    return value


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
