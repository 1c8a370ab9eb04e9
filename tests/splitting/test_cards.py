"""Cards and configurations: any value is written as data."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from shardhub.errors import FormatError
from shardhub.manifest import Crossing, Manifest, Proof, ShardHint, Source, Stage, StageEntry, WeightFile
from shardhub.splitting.cards import (
    StageSummary,
    front_matter,
    model_tag,
    one_line,
    pipeline_card,
    shard_card,
    shard_config,
)
from shardhub.splitting.source_card import licence_files, reservations, source_fields

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
    """Front matter and body, separated as the Hub does."""
    match = re.match(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))", card)
    assert match is not None
    return yaml.safe_load(match.group(2)), card[match.end() :]


TEXTS = st.text() | st.sampled_from(HOSTILE)
KEYS = st.text(max_size=100) | st.sampled_from([text for text in HOSTILE if len(text) <= 100])
VALUES = st.recursive(TEXTS | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8)


@given(st.dictionaries(st.sampled_from(["license", "language", "extra_gated_fields"]), VALUES))
def test_front_matter_is_read_back_equal(fields: dict) -> None:
    """YAML reads back the same strings, whatever characters they contain."""
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
        "library_name": "shardhub",
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
    """A hostile model name or licence changes neither front matter nor structure of a pipeline's card."""
    card = pipeline_card(_manifest(), name="model-pipeline", source=value, fields={"base_model": value}, stages=STAGES)
    fields, body = _parsed(card)
    assert fields == {
        "library_name": "shardhub",
        "tags": ["mlx", "shardhub", "shardhub-pipeline"],
        "pipeline_tag": "text-generation",
        "base_model": value,
        "base_model_relation": "quantized",
    }
    assert "<script" not in body
    assert "1522756" not in body


@given(st.text())
def test_one_line_is_one_line_without_markup(value: str) -> None:
    """Text for a card has no line break, no tag, no live Markdown, and bounded length."""
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
    assert "cannot be loaded on its own" in body
    assert "\nshardhub serve model-shard-1\n" in body
    assert "\nshardhub generate --manifest model-pipeline" in body
    assert "| 0 | `model-shard-0` | 0 to 2 | 5.00 GB |\n| 1 | `model-shard-1` (this one) | 3 | 1.00 MB |\n" in body
    assert "a" * 64 in body


def test_pipeline_card_joins_the_model_tree() -> None:
    """The base model is the source's repo if there is one, else what the source's card names."""
    card = pipeline_card(
        _manifest("org/model"), name="model-pipeline", source="org/model", fields={"base_model": "x/y"}, stages=STAGES
    )
    fields, body = _parsed(card)
    assert (fields["base_model"], fields["base_model_relation"]) == ("org/model", "quantized")
    assert "shardhub serve model-shard-0\nshardhub serve model-shard-1\n" in body
    assert "--manifest model-pipeline --node HOST:PORT --node HOST:PORT --prompt" in body
    assert _manifest("org/model").pipeline_id in body


def test_configuration_keeps_every_value() -> None:
    """A shard's config.json is the source's plus our block, infinite numbers and markup included."""
    config = {"a": [float("inf"), 1e-5], "text": "<b> & {{ 7*7 }} 漢", "shardhub": "old"}
    again = json.loads(shard_config(config, HINT))
    assert again.pop("shardhub") == HINT.model_dump(mode="json")
    assert again == {"a": [float("inf"), 1e-5], "text": "<b> & {{ 7*7 }} 漢"}


@given(TEXTS, TEXTS, VALUES)
def test_the_clients_own_parser_reads_cards_back(name: str, licence: str, prompt: object) -> None:
    """Whatever a source's card says, huggingface_hub reads back its values, and ours beside them."""
    fields = {"license": licence, "license_name": name, "extra_gated_prompt": prompt}
    proof = Proof(
        stage_digest="a" * 64,
        method="graph",
        graph_hash="f" * 64,
        chunks=(3, 1),
        shardhub="1",
        mlx="2",
        mlx_lm="3",
        device=name[:64],
    )
    texts = [
        shard_card(STAGE, HINT, source=name, fields=fields, stages=STAGES, on_hub=True),
        pipeline_card(
            _manifest("org/model"), name="m", source=name, fields=fields, stages=STAGES, proof=proof, on_hub=True
        ),
    ]
    for text in texts:
        data = ModelCard(text, ignore_metadata_errors=False).data.to_dict()
        assert data["library_name"] == "shardhub"
        assert {key: data.get(key) for key in fields if fields[key]} == {
            key: fields[key] for key in fields if fields[key]
        }
        assert "1522756" not in text
        assert "<script" not in _parsed(text)[1]


def test_shards_of_one_model_share_a_tag() -> None:
    """All cuts of a model share a tag, by which a push finds weight files that are on the Hub already."""
    card = shard_card(STAGE, HINT, source="m", fields={}, stages=STAGES, on_hub=True)
    assert model_tag("c" * 64) in _parsed(card)[0]["tags"]
    assert "[`model-shard-0`](/model-shard-0)" in card


def test_pipeline_card_says_how_it_was_proven() -> None:
    proof = Proof(
        stage_digest="a" * 64,
        method="graph",
        graph_hash="f" * 64,
        chunks=(3, 5, 1),
        shardhub="0.1.0",
        mlx="0.32.4",
        mlx_lm="0.32.2",
        device="Device(cpu, 0)",
    )
    stages = [dataclasses.replace(row, graph_hash=f"{row.index}f" * 32) for row in STAGES]
    card = pipeline_card(_manifest(), name="m", source="m", fields={}, stages=stages, proof=proof)
    assert "of 3, 5, 1 tokens" in card
    assert "mlx-lm 0.32.2" in card
    assert f"| 1 | `{'1f' * 32}` |" in card
    assert f"`{'0' * 16}`" in card
    unproven = pipeline_card(_manifest(), name="m", source="m", fields={}, stages=STAGES)
    assert "could not be traced" in unproven
    assert "gave the same graph" not in unproven


def test_shard_says_nothing_that_only_a_model_says() -> None:
    fields = {"base_model": "a/b", "pipeline_tag": "text-generation", "license": "mit"}
    front_matter, _ = _parsed(shard_card(STAGE, HINT, source="m", fields=fields, stages=STAGES, on_hub=True))
    assert set(front_matter) == {"library_name", "tags", "license"}


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        (None, {}),
        ("# no front matter", {}),
        ("---\nlicense: mit\nlanguage: [en, de]\nother: x\n---\n", {"license": "mit", "language": ["en", "de"]}),
        ("\ufeff---\nbase_model:\n- a/b\n- c/d\n---", {"base_model": ["a/b", "c/d"]}),
        (
            "---\nlicense: other\nlicense_name: x\nlicense_link: LICENSE\nextra_gated_prompt: 'Do you?'\n---\n",
            {"license": "other", "license_name": "x", "license_link": "LICENSE", "extra_gated_prompt": "Do you?"},
        ),
        (
            "---\nextra_gated_fields:\n  Name: text\n  I agree: {type: checkbox}\n  Where: {options: [a, b]}\n---\n",
            {"extra_gated_fields": {"Name": "text", "I agree": {"type": "checkbox"}, "Where": {"options": ["a", "b"]}}},
        ),
        (
            "---\nextra_gated_fields: {n: 5}\nextra_gated_eu_disallowed: true\n---\n",
            {"extra_gated_eu_disallowed": True},
        ),
        ("---\nlanguage: [en, no, '{{ x }}', zh-Hant]\n---\n", {"language": ["en", "no", "zh-Hant"]}),
        (
            "---\nlanguage: no\npipeline_tag: text-generation\n---\n",
            {"language": ["no"], "pipeline_tag": "text-generation"},
        ),
        ("---\nlicense: My Own Terms\n---\n", {"license": "other", "license_name": "My Own Terms"}),
        ("---\nbase_model: ../../etc\npipeline_tag: '<b>'\n---\n", {}),
        ("---\nlicense: {a: b}\nlanguage: 5\nbase_model: []\n---\n", {}),
        ("---\nlicense: !!python/object/apply:os.system [echo]\n---\n", {}),
        ("---\n[broken\n---\n", {}),
        ("---\n- a list\n---\n", {}),
        ("---\na: " + "[" * 20_000 + "\n---\n", {}),
        ("---\nlicense: mit\n" + "x" * 100_000 + "\n---\n", {}),
        ("---\nlicense: 2024-12-01\n---\n", {}),
    ],
)
def test_source_card_is_read_as_advice(readme: str | None, expected: dict, tmp_path: Path) -> None:
    """Known fields of the source's card are adopted; broken or hostile ones are left out."""
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert source_fields(tmp_path) == expected


def test_licence_files_are_told_by_name(tmp_path: Path) -> None:
    names = ["LICENSE", "LICENCE.txt", "license-mit", "NOTICE.md", "USE_POLICY.md", "COPYING", "LICENSE.pdf"]
    for name in [*names, "licensed.py", "model.py", "README.md", "notice_board.html"]:
        (tmp_path / name).write_text(name)
    (tmp_path / "terms").mkdir()
    assert set(licence_files(tmp_path)) == set(names)
    (tmp_path / "LICENSE").write_bytes(b"x" * (1 << 20) + b"x")
    with pytest.raises(FormatError, match="too large for a licence"):
        licence_files(tmp_path)


@pytest.mark.parametrize(
    ("fields", "gated", "text"),
    [
        ({"license": "mit"}, False, None),
        ({"license": "mit"}, True, "gated"),
        ({"license": "mit", "extra_gated_prompt": "Do you?"}, False, "gated"),
        ({}, False, "not state a licence"),
        ({"license": "unknown"}, False, "'unknown'"),
        ({"license": "other", "license_name": "my-terms"}, False, "my-terms"),
    ],
)
def test_what_speaks_against_publishing(fields: dict, gated: bool, text: str | None) -> None:
    reasons = reservations(fields, gated=gated)
    assert bool(reasons) == (text is not None)
    assert all(text in reason for reason in reasons)
