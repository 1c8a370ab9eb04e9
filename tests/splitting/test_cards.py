"""Cards and configurations: whatever a value holds, it comes out as data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shardhub.manifest import Crossing, Manifest, ShardHint, Source, Stage, StageEntry, WeightFile
from shardhub.splitting.cards import (
    StageSummary,
    front_matter,
    one_line,
    pipeline_card,
    shard_card,
    shard_config,
    source_fields,
)

HOSTILE = [
    "{{ 1234*1234 }}",
    "{% for x in range(9) %}x{% endfor %}",
    "---\nlibrary_name: evil\n---\n",
    "a\nlicense: mit",
    '"quoted" \\ back',
    "<script>alert(1)</script>",
    "[link](https://example.org) ![x](y)",
    "| a | table |",
    "# heading",
    "```\ncode\n```",
    "`tick`",
    "a: b # c",
    "*alias &anchor !!python/object:os.system x",
    "\x00\x07\x1b[31m\x7f\x85\u2028\u2029\ufeff\ufffe",
    "yes",
    "null",
    "1e3",
    "",
    " space ",
    "ü 漢字 😀",
    "n" * 10_000,
]
STAGES = (
    StageSummary(index=0, name="model-shard-0", start=0, stop=3, size_bytes=5 * 10**9),
    StageSummary(index=1, name="model-shard-1", start=3, stop=4, size_bytes=10**6),
)
HINT = ShardHint(stage_digest="a" * 64, index=1, start=3, stop=4, pipeline="model-pipeline")
STAGE = Stage(
    source=Source(repo=None, commit=None),
    config_digest="b" * 64,
    catalogue_digest="c" * 64,
    num_layers=4,
    start=3,
    stop=4,
    dtype="F16",
    quantization=None,
    weight_files=(WeightFile(name="layer-00003.safetensors", size_bytes=10**6, sha256="d" * 64, tensors=("a",)),),
    crossings_in=(Crossing(name="layer.2", dtype="F16", shape=("B", "L", 8)),),
    crossings_out=(),
)


def _manifest(repo: str | None = None) -> Manifest:
    return Manifest(
        name="model",
        source=Source(repo=repo, commit="e" * 40 if repo else None),
        config_digest="b" * 64,
        num_layers=4,
        stages=tuple(
            StageEntry(digest=f"{row.index}" * 64, start=row.start, stop=row.stop, size_bytes=1, locations=())
            for row in STAGES
        ),
        files={},
    )


def _parsed(card: str) -> tuple[dict[str, object], str]:
    """Front matter and body, taken apart as the Hub does."""
    found = re.match(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))", card)
    assert found is not None
    return yaml.safe_load(found.group(2)), card[found.end() :]


@given(
    st.dictionaries(st.sampled_from(["license", "language", "base_model"]), st.text() | st.lists(st.text(), min_size=1))
)
def test_front_matter_is_read_back_equal(fields: dict) -> None:
    """YAML gives back the very texts, whatever characters they hold."""
    text = front_matter(fields)
    text.encode()
    assert (yaml.safe_load(text) or {}) == fields


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_are_data_in_a_shard_card(value: str) -> None:
    """A hostile model name or licence changes neither front matter nor structure of a shard's card."""
    card = shard_card(STAGE, HINT, source=value, fields={"license": value, "language": [value]}, stages=STAGES)
    plain = shard_card(STAGE, HINT, source="m", fields={"license": "mit", "language": ["en"]}, stages=STAGES)
    fields, body = _parsed(card)
    assert fields == {
        "library_name": "mlx",
        "tags": ["mlx", "shardhub", "shardhub-shard"],
        "license": value,
        "language": [value],
    }
    assert len(body.splitlines()) == len(_parsed(plain)[1].splitlines())
    assert "<script" not in body
    assert "1522756" not in body
    assert len(body) < 5000
    assert body.count("```") == 4


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_are_data_in_a_pipeline_card(value: str) -> None:
    """The same for a pipeline's card."""
    card = pipeline_card(_manifest(), name="model-pipeline", source=value, fields={"base_model": value}, stages=STAGES)
    fields, body = _parsed(card)
    assert fields == {
        "library_name": "mlx",
        "tags": ["mlx", "shardhub", "shardhub-pipeline"],
        "base_model": value,
    }
    assert "<script" not in body
    assert "1522756" not in body


@given(st.text())
def test_one_line_is_one_line_without_markup(value: str) -> None:
    """Text for a card has no line break, no tag, no live Markdown, and an end."""
    line = one_line(value)
    assert len(line.splitlines()) <= 1
    assert "<" not in line
    assert ">" not in line
    assert not re.search(r"(?<!\\)[`*_\[\]|#]", line.replace("\\\\", ""))
    assert len(line) <= 5 * 200


def test_shard_card_says_what_it_is() -> None:
    """The card names the stage, says that it cannot be loaded alone, and how to serve it."""
    card = shard_card(STAGE, HINT, source="org/model", fields={"base_model": "org/base"}, stages=STAGES)
    fields, body = _parsed(card)
    assert "base_model" not in fields
    assert "model-shard-1: layers 3 of 4" in body
    assert "cannot be loaded alone" in body
    assert "\nshardhub serve model-shard-1\n" in body
    assert "\nshardhub generate --manifest model-pipeline" in body
    assert "| 0 | `model-shard-0` | 0 to 2 | 5.00 GB |\n| 1 | `model-shard-1` (this one) | 3 | 1.00 MB |\n" in body
    assert "a" * 64 in body


def test_pipeline_card_joins_the_model_tree() -> None:
    """The base model is the source's repo where there is one, else what the source's card names."""
    card = pipeline_card(
        _manifest("org/model"), name="model-pipeline", source="org/model", fields={"base_model": "x/y"}, stages=STAGES
    )
    fields, body = _parsed(card)
    assert fields["base_model"] == "org/model"
    assert "shardhub serve model-shard-0\nshardhub serve model-shard-1\n" in body
    assert "--manifest model-pipeline --node HOST:PORT --node HOST:PORT --prompt" in body
    assert _manifest("org/model").pipeline_id in body


def test_configuration_keeps_every_value() -> None:
    """A shard's config.json is the source's and our block, infinite numbers and markup included."""
    config = {"a": [float("inf"), 1e-5], "text": "<b> & {{ 7*7 }} 漢", "shardhub": "old"}
    again = json.loads(shard_config(config, HINT))
    assert again.pop("shardhub") == HINT.model_dump(mode="json")
    assert again == {"a": [float("inf"), 1e-5], "text": "<b> & {{ 7*7 }} 漢"}


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        (None, {}),
        ("# no front matter", {}),
        ("---\nlicense: mit\nlanguage: [en, de]\nother: x\n---\n", {"license": "mit", "language": ["en", "de"]}),
        ("\ufeff---\nbase_model:\n- a/b\n- c/d\n---", {"base_model": ["a/b", "c/d"]}),
        ("---\nlicense: {a: b}\nlanguage: 5\nbase_model: []\n---\n", {}),
        ("---\nlicense: !!python/object/apply:os.system [echo]\n---\n", {}),
        ("---\n[broken\n---\n", {}),
        ("---\n- a list\n---\n", {}),
        ("---\na: " + "[" * 20_000 + "\n---\n", {}),
        ("---\nlicense: mit\n" + "x" * 100_000 + "\n---\n", {}),
        ("---\nlicense: 2024-99-99\n---\n", {}),
    ],
)
def test_source_card_is_read_as_advice(readme: str | None, expected: dict, tmp_path: Path) -> None:
    """Known fields of the source's card are taken, broken or hostile ones left out."""
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert source_fields(tmp_path) == expected
