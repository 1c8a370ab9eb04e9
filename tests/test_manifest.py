"""stage.json and shardhub.json: each document has one byte form, and any other form is refused."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardhub.errors import DigestMismatch, FormatError, NewerFormat
from shardhub.manifest import (
    Crossing,
    Document,
    FolderLocation,
    Manifest,
    Proof,
    Quantization,
    RepoLocation,
    ShardHint,
    Source,
    SourceLocation,
    SourceQuantization,
    Stage,
    StageEntry,
    WeightFile,
    canonical,
    check_digest,
    config_digest,
    decode,
    decode_catalogue,
    decode_identified,
    encode,
    encode_catalogue,
    pipeline_id,
    sha256_hex,
)
from shardhub.tensors import DTYPE_SIZES, TensorSpec

digests = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")
commits = st.integers(0, 2**160 - 1).map(lambda number: f"{number:040x}")
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
# Of the names that end in x, Windows keeps one for itself.
plain = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,8}x", fullmatch=True).filter(lambda name: name.lower() != "aux")
repos = st.tuples(plain, plain).map("/".join)
sources = st.builds(Source, repo=st.none() | repos, commit=st.none() | commits)
dtypes = st.sampled_from(sorted(DTYPE_SIZES))
dimensions = st.sampled_from(["B", "L", "T"]) | st.integers(0, 1 << 20)


def _crossings(draw: st.DrawFn) -> tuple[Crossing, ...]:
    names = draw(st.lists(texts, min_size=1, max_size=3, unique=True))
    return tuple(
        Crossing(name=name, dtype=draw(dtypes), shape=tuple(draw(st.lists(dimensions, max_size=4)))) for name in names
    )


@st.composite
def stages(draw: st.DrawFn) -> Stage:
    num_layers = draw(st.integers(1, 200))
    start = draw(st.integers(0, num_layers - 1))
    stop = draw(st.integers(start + 1, num_layers))
    names = draw(st.lists(plain, min_size=1, max_size=3, unique_by=str.lower))
    return Stage(
        source=draw(sources),
        config_digest=draw(digests),
        catalogue_digest=draw(digests),
        num_layers=num_layers,
        start=start,
        stop=stop,
        dtype=draw(dtypes),
        quantization=draw(
            st.none() | st.builds(Quantization, bits=st.integers(1, 16), group_size=st.just(64), mode=st.just("affine"))
        ),
        weight_files=tuple(
            WeightFile(
                name=f"{name}.safetensors",
                size_bytes=draw(st.integers(0, 1 << 50)),
                sha256=draw(digests),
                tensors=(f"{index}.a", f"{index}.b.{draw(texts)}"),
            )
            for index, name in enumerate(names)
        ),
        crossings_in=_crossings(draw) if start else (),
        crossings_out=_crossings(draw) if stop < num_layers else (),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    counts = draw(st.lists(st.integers(1, 50), min_size=1, max_size=5))
    stage_digests = draw(st.lists(digests, min_size=len(counts), max_size=len(counts), unique=True))
    locations = st.builds(RepoLocation, repo=repos, commit=commits) | st.builds(FolderLocation, name=plain)
    entries, at = [], 0
    for count, digest in zip(counts, stage_digests, strict=True):
        entries.append(
            StageEntry(
                digest=digest,
                start=at,
                stop=at + count,
                size_bytes=draw(st.integers(0, 1 << 50)),
                locations=tuple(draw(st.lists(locations, max_size=2))),
            )
        )
        at += count
    return Manifest(
        name=draw(plain),
        source=draw(sources),
        config_digest=draw(digests),
        num_layers=at,
        stages=tuple(entries),
        files=draw(st.dictionaries(plain, digests, max_size=3)),
        inexact=draw(st.none() | st.from_regex(r"[ -~]{1,200}", fullmatch=True)),
    )


def _stage() -> dict[str, Any]:
    return {
        "kind": "shardhub-stage",
        "format_version": 1,
        "source": {"repo": "org/model", "commit": "a" * 40},
        "config_digest": "b" * 64,
        "catalogue_digest": "c" * 64,
        "num_layers": 30,
        "start": 10,
        "stop": 20,
        "dtype": "BF16",
        "quantization": {"bits": 4, "group_size": 64, "mode": "affine"},
        "weight_files": [
            {
                "name": "layer-00010.safetensors",
                "size_bytes": 1000,
                "sha256": "d" * 64,
                "tensors": ["model.layers.10.mlp.up_proj.weight", "model.layers.10.ü"],
            }
        ],
        "crossings_in": [{"name": "layer.9", "dtype": "BF16", "shape": ["B", "L", 576]}],
        "crossings_out": [{"name": "layer.19", "dtype": "BF16", "shape": ["B", "L", 576]}],
    }


def _manifest() -> dict[str, Any]:
    return {
        "kind": "shardhub-pipeline",
        "format_version": 1,
        "name": "model",
        "source": {"repo": None, "commit": None},
        "config_digest": "b" * 64,
        "num_layers": 30,
        "stages": [
            {
                "digest": f"{index}" * 64,
                "start": 10 * index,
                "stop": 10 * index + 10,
                "size_bytes": 1000,
                "locations": [
                    {"kind": "folder", "name": f"model-shard-{index}"},
                    {"kind": "repo", "repo": f"me/model-shard-{index}", "commit": "e" * 40},
                ],
            }
            for index in range(3)
        ],
        "files": {"config.json": "f" * 64},
    }


def _referring() -> dict[str, Any]:
    """A manifest that names the source as a second place of its first stage."""
    document = _manifest() | {"format_version": 2, "source": {"repo": "org/model", "commit": "a" * 40}}
    return _with(document, "stages.0.locations.2", {"kind": "source", "repo": "org/model", "commit": "a" * 40})


def _with(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one field changed, or removed where the value is `...`."""
    copy = json.loads(json.dumps(document))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at = copy
    for parent in parents:
        at = at[parent]
    if value is ...:
        del at[last]
    elif isinstance(last, int) and last == len(at):
        at.append(value)
    else:
        at[last] = value
    return copy


@given(stages())
def test_stage_survives_its_bytes(stage: Stage) -> None:
    """Decoding a stage's bytes gives the stage and its digest."""
    again = decode_identified(Stage, encode(stage), where="stage.json")
    assert again == stage
    assert again.digest == sha256_hex(encode(stage))


@given(manifests())
def test_manifest_survives_its_bytes(manifest: Manifest) -> None:
    """Decoding a manifest's bytes gives the manifest and its pipeline id."""
    again = decode_identified(Manifest, encode(manifest), where="shardhub.json")
    assert again == manifest
    assert again.pipeline_id == manifest.pipeline_id


@settings(max_examples=300)
@given(st.one_of(stages(), manifests()), st.data())
def test_changed_bytes_are_refused_or_another_document(document: Document, data: st.DataObject) -> None:
    """A change of bytes is always detected: the document is refused, or its digest differs."""
    original = encode(document)
    at = data.draw(st.integers(0, len(original) - 1))
    noise = data.draw(st.binary(max_size=3))
    removed = data.draw(st.integers(0, 3))
    changed = original[:at] + noise + original[at + removed :]
    try:
        again = decode_identified(type(document), changed, where="document")
    except FormatError:
        return
    assert (encode(again) == original) == (changed == original)
    assert encode(again) == changed


def test_canonical_bytes_are_golden() -> None:
    """The digests of two fixed documents never change: every published shard depends on them."""
    stage = decode(Stage, json.dumps(_stage()).encode(), where="stage.json")
    manifest = decode(Manifest, json.dumps(_manifest()).encode(), where="shardhub.json")
    assert encode(stage).startswith(b'{"catalogue_digest":"cccc')
    assert "ü".encode() in encode(stage)
    assert stage.digest == "e3322937992361e2660f2f5234ce700c99803592696dedbd87c1aef074d92020"
    assert sha256_hex(encode(manifest)) == "17dcbbfbf79245a95ef0c9df6e6dfa1eb634435e42cdae97860d578ba1cbb177"
    assert manifest.pipeline_id == "9d4ab3683f36a3fe9fab6b14f9fa70a307127d3f2aa35603b6371d5ecf4373f3"


def test_pipeline_id_depends_on_order_and_configuration_only() -> None:
    """The pipeline id depends on order and configuration, not on names, locations and files."""
    manifest = decode(Manifest, json.dumps(_manifest()).encode(), where="shardhub.json")
    other = _with(_with(_manifest(), "name", "other"), "files", {})
    assert decode(Manifest, json.dumps(other).encode(), where="x").pipeline_id == manifest.pipeline_id
    first, second, third = [stage.digest for stage in manifest.stages]
    assert pipeline_id([second, first, third], manifest.config_digest) != manifest.pipeline_id
    assert pipeline_id([first, second, third], "0" * 64) != manifest.pipeline_id


def test_ignored_fields_are_left_out_where_there_are_none() -> None:
    """A manifest without ignored fields has the bytes of earlier versions; an empty list is not canonical."""
    plain = decode(Manifest, json.dumps(_manifest()).encode(), where="x")
    assert b"ignored_fields" not in encode(plain)
    named = _with(_manifest(), "ignored_fields", ["text_config.hidden_act"])
    manifest = decode(Manifest, json.dumps(named).encode(), where="x")
    assert manifest.ignored_fields == ("text_config.hidden_act",)
    assert decode_identified(Manifest, encode(manifest), where="x") == manifest
    assert manifest.pipeline_id == plain.pipeline_id
    with pytest.raises(FormatError, match="canonical"):
        decode_identified(Manifest, canonical(_with(_manifest(), "ignored_fields", [])), where="x")


def test_quantisation_of_the_source_is_left_out_where_there_is_none() -> None:
    """A stage that was copied has the bytes it had before any was quantised; the others say how."""
    plain = decode(Stage, json.dumps(_stage()).encode(), where="x")
    assert b"quantized" not in encode(plain)
    record = {"bits": 4, "group_size": 64, "mode": "affine"}
    named = decode(Stage, json.dumps(_with(_stage(), "source.quantized", record)).encode(), where="x")
    assert named.source.quantized == SourceQuantization(bits=4, group_size=64, mode="affine")
    assert decode_identified(Stage, encode(named), where="x") == named
    assert b"recipe" not in encode(named)
    assert named.digest != plain.digest


def test_config_digest_is_of_the_content() -> None:
    """The digest ignores layout, key order and our own block, and depends on each value, infinite ones too."""
    config = {"b": 1, "a": [float("inf"), 0.1], "text": "ü"}
    same = {"text": "ü", "a": [float("inf"), 0.1], "b": 1, "shardhub": {"index": 0}}
    assert config_digest(config) == config_digest(same)
    assert config_digest(config) != config_digest({**config, "b": 2})


BAD_STAGES: dict[str, tuple[str, Any]] = {
    "no start": ("start", ...),
    "start after stop": ("start", 20),
    "stop after the model": ("stop", 31),
    "negative start": ("start", -1),
    "text for a number": ("start", "10"),
    "fraction": ("start", 10.5),
    "truth for a number": ("start", True),
    "layers without number": ("num_layers", 10**9),
    "no layers": ("num_layers", 0),
    "unknown field": ("colour", "red"),
    "unknown nested field": ("source.path", "/tmp"),
    "other kind": ("kind", "shardhub-pipeline"),
    "version 0": ("format_version", 0),
    "version as text": ("format_version", "1"),
    "unknown dtype": ("dtype", "F33"),
    "short digest": ("config_digest", "b" * 63),
    "digest in capitals": ("config_digest", "B" * 64),
    "digest with a line end": ("config_digest", "b" * 64 + "\n"),
    "commit as branch": ("source.commit", "main"),
    "repo as path": ("source.repo", "../../etc"),
    "repo without owner": ("source.repo", "model"),
    "no weight files": ("weight_files", []),
    "file twice": ("weight_files.1", _stage()["weight_files"][0]),
    "file twice but for case": (
        "weight_files.1",
        {**_stage()["weight_files"][0], "name": "LAYER-00010.safetensors", "tensors": ["z"]},
    ),
    "tensor in two files": ("weight_files.1", {**_stage()["weight_files"][0], "name": "b.safetensors"}),
    "tensor twice": ("weight_files.0.tensors", ["a", "a"]),
    "file without tensors": ("weight_files.0.tensors", []),
    "file size negative": ("weight_files.0.size_bytes", -1),
    "file size insane": ("weight_files.0.size_bytes", 2**60),
    "name leaves the folder": ("weight_files.0.name", "../a.safetensors"),
    "name is absolute": ("weight_files.0.name", "/a.safetensors"),
    "name has a backslash": ("weight_files.0.name", "a\\b.safetensors"),
    "name has NUL": ("weight_files.0.name", "a\0.safetensors"),
    "name has two dots": ("weight_files.0.name", "a..safetensors"),
    "name is hidden": ("weight_files.0.name", ".a.safetensors"),
    "name is a device": ("weight_files.0.name", "CON.safetensors"),
    "name ends in a line end": ("weight_files.0.name", "a.safetensors\n"),
    "name of another format": ("weight_files.0.name", "a.bin"),
    "name is long": ("weight_files.0.name", "a" * 200 + ".safetensors"),
    "nothing comes in": ("crossings_in", []),
    "nothing goes out": ("crossings_out", []),
    "crossing twice": ("crossings_in.1", _stage()["crossings_in"][0]),
    "crossing of unknown symbol": ("crossings_in.0.shape", ["B", "X"]),
    "crossing of negative size": ("crossings_in.0.shape", ["B", -1]),
    "crossing of nine dimensions": ("crossings_in.0.shape", ["B"] * 9),
    "bits 0": ("quantization.bits", 0),
    "bits 400": ("quantization.bits", 400),
    "quantised without a mode": ("source.quantized", {"bits": 4, "group_size": 64}),
    "quantised by a recipe without a name": (
        "source.quantized",
        {"bits": 4, "group_size": 64, "mode": "affine", "recipe": ""},
    ),
}

BAD_MANIFESTS: dict[str, tuple[str, Any]] = {
    "ignored field with a line end": ("ignored_fields", ["hidden_act\n"]),
    "ignored field without a name": ("ignored_fields", [""]),
    "gap": ("stages.1.start", 11),
    "overlap": ("stages.1.start", 9),
    "empty stage": ("stages.0.stop", 0),
    "does not start at 0": ("stages.0.start", 1),
    "does not end at the end": ("stages.2.stop", 29),
    "ends after the end": ("stages.2.stop", 31),
    "wrong order": ("stages", _manifest()["stages"][::-1]),
    "shard twice": ("stages.1.digest", "0" * 64),
    "no stages": ("stages", []),
    "2000 stages": ("stages", _manifest()["stages"][:1] * 2000),
    "folder leaves": ("stages.0.locations.0.name", ".."),
    "folder is a path": ("stages.0.locations.0.name", "a/b"),
    "folder is a device": ("stages.0.locations.0.name", "nul"),
    "location of unknown kind": ("stages.0.locations.0.kind", "http"),
    "location without kind": ("stages.0.locations.0.kind", ...),
    "repo without commit": ("stages.0.locations.1.commit", ...),
    "file leaves": ("files", {"../config.json": "f" * 64}),
    "file is hidden": ("files", {".netrc": "f" * 64}),
    "file digest short": ("files", {"config.json": "f"}),
    "name is a path": ("name", "a/b"),
    "unknown field": ("signature", "x"),
    "insane size": ("stages.0.size_bytes", 2**60),
    "empty remark": ("inexact", ""),
    "long remark": ("inexact", "x" * 201),
    "remark with a control character": ("inexact", "a\x1b[2J"),
    "remark of two lines": ("inexact", "a\nb"),
}


@pytest.mark.parametrize("name", BAD_STAGES)
def test_bad_stage_is_refused(name: str) -> None:
    """Each rule of stage.json has an example that breaks only this rule."""
    with pytest.raises(FormatError, match=r"plain file name|specification"):
        decode(Stage, json.dumps(_with(_stage(), *BAD_STAGES[name])).encode(), where="stage.json")


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_bad_manifest_is_refused(name: str) -> None:
    """Each rule of shardhub.json has an example that breaks only this rule."""
    with pytest.raises(FormatError, match=r"plain file name|specification"):
        decode(Manifest, json.dumps(_with(_manifest(), *BAD_MANIFESTS[name])).encode(), where="shardhub.json")


@pytest.mark.parametrize(("path", "start"), [("crossings_in", 0), ("crossings_out", 10)])
def test_ends_of_the_model_have_no_crossings(path: str, start: int) -> None:
    """The first stage receives only token ids, and the last one sends no hidden states."""
    document = _with(_with(_stage(), "start", start), "stop", 20 if start == 0 else 30)
    with pytest.raises(FormatError, match=path):
        decode(Stage, json.dumps(document).encode(), where="stage.json")


@pytest.mark.parametrize(("name", "layer"), [("gap", "layer 10"), ("overlap", "layer 9")])
def test_gap_and_overlap_name_the_layer(name: str, layer: str) -> None:
    """The message says at which layer the stages do not meet."""
    with pytest.raises(FormatError, match=f"{name} at {layer}"):
        decode(Manifest, json.dumps(_with(_manifest(), *BAD_MANIFESTS[name])).encode(), where="shardhub.json")


@pytest.mark.parametrize(("kind", "version"), [(Stage, 2), (Manifest, 3)])
def test_newer_version_names_what_reads_it(kind: type[Document], version: int) -> None:
    """A later format version is not called broken, whatever else the document contains."""
    with pytest.raises(NewerFormat, match=rf"version {version}.*up to {version - 1}.*pip install --upgrade"):
        decode(kind, canonical({"format_version": version, "whatever": [1, 2]}), where="document")


def test_manifest_that_refers_to_its_source_is_golden() -> None:
    """Version 2 adds locations of the kind source, and nothing else; the pipeline id stays the same."""
    data = canonical(_referring())
    manifest = decode_identified(Manifest, data, where="shardhub.json")
    assert manifest.stages[0].locations[2] == SourceLocation(repo="org/model", commit="a" * 40)
    assert encode(manifest) == data
    assert sha256_hex(data) == "76a6cb8ae9b40b7f71ae0788841dc1db263256c4afbd72452bd3936018b4ea69"
    copied = decode(Manifest, canonical(_manifest()), where="shardhub.json")
    assert manifest.pipeline_id == copied.pipeline_id


BAD_REFERENCES: dict[str, tuple[str, Any]] = {
    "version of a manifest without such locations": ("stages.0.locations.2", ...),
    "version that older readers would take": ("format_version", 1),
    "version 0": ("format_version", 0),
    "other repo": ("stages.0.locations.2.repo", "org/other"),
    "other commit": ("stages.0.locations.2.commit", "b" * 40),
    "source in a folder": ("source", {"repo": None, "commit": None}),
    "URL": ("stages.0.locations.2.repo", "https://example.org/model"),
    "branch": ("stages.0.locations.2.commit", "main"),
    "unknown field": ("stages.0.locations.2.endpoint", "example.org"),
}


@pytest.mark.parametrize("name", BAD_REFERENCES)
def test_bad_reference_to_the_source_is_refused(name: str) -> None:
    """A location of the kind source is the manifest's own source by repo and commit, in version 2 only."""
    with pytest.raises(FormatError, match="specification"):
        decode(Manifest, json.dumps(_with(_referring(), *BAD_REFERENCES[name])).encode(), where="shardhub.json")


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"hello",
    "list": b"[]",
    "null": b"null",
    "number": b"5",
    "byte order mark": b"\xef\xbb\xbf" + json.dumps(_stage()).encode(),
    "UTF-16": json.dumps(_stage()).encode("utf-16"),
    "invalid UTF-8": json.dumps(_stage()).encode().replace(b"org/model", b"org/\xff"),
    "half a surrogate": json.dumps(_stage()).encode().replace(b"affine", b"\\ud800"),
    "key twice": json.dumps(_stage()).encode().replace(b'"start"', b'"start": 10, "start"'),
    "nested key twice": json.dumps(_stage()).encode().replace(b'"repo"', b'"repo": null, "repo"'),
    "NaN": json.dumps(_stage()).encode().replace(b": 10,", b": NaN,"),
    "Infinity": json.dumps(_stage()).encode().replace(b": 10,", b": -Infinity,"),
    "number of 5000 digits": json.dumps(_stage()).encode().replace(b": 10,", b": " + b"1" * 5000 + b","),
    "huge exponent": json.dumps(_stage()).encode().replace(b": 10,", b": 1e400,"),
    "nested lists": b"[" * 1_000_000,
    "nested objects": b'{"a":' * 1_000_000,
    "trailing bytes": json.dumps(_stage()).encode() + b"{}",
    "10 MB": b'{"a": "' + b"x" * (10 << 20) + b'"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_soon(name: str) -> None:
    """Any bytes given as stage.json raise `FormatError`, quickly and in little memory."""
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(FormatError) as caught:
        decode(Stage, HOSTILE[name], where="stage.json")
    assert time.monotonic() - start < 15
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("change", [b"\n", b" "])
def test_identity_is_the_very_bytes(change: bytes) -> None:
    """A document whose digest is its identity is refused in any other form."""
    stage = decode(Stage, json.dumps(_stage()).encode(), where="stage.json")
    with pytest.raises(FormatError, match="canonical"):
        decode_identified(Stage, encode(stage) + change, where="stage.json")
    with pytest.raises(FormatError, match="canonical"):
        decode_identified(Stage, json.dumps(_stage()).encode(), where="stage.json")


def test_empty_field_that_may_be_left_out_is_left_out() -> None:
    """A manifest that is not inexact has the bytes of earlier versions, and no other form is accepted."""
    manifest = decode(Manifest, json.dumps(_manifest()).encode(), where="shardhub.json")
    assert b"inexact" not in encode(manifest)
    with_null = canonical({**json.loads(encode(manifest)), "inexact": None})
    with pytest.raises(FormatError, match="canonical"):
        decode_identified(Manifest, with_null, where="shardhub.json")
    marked = manifest.model_copy(update={"inexact": "9 of 64"})
    assert decode_identified(Manifest, encode(marked), where="shardhub.json") == marked
    assert marked.pipeline_id == manifest.pipeline_id


@given(
    st.dictionaries(
        texts, st.builds(TensorSpec, dtype=dtypes, shape=st.lists(st.integers(0, 9), max_size=4).map(tuple)), max_size=6
    )
)
def test_catalogue_survives_its_bytes(tensors: dict[str, TensorSpec]) -> None:
    """tensors.json gives back the tensors, and is accepted only under its digest."""
    data = encode_catalogue(tensors)
    assert decode_catalogue(data, digest=sha256_hex(data), where="tensors.json") == tensors
    with pytest.raises(DigestMismatch):
        decode_catalogue(data, digest="0" * 64, where="tensors.json")


def test_digest_mismatch_shows_both() -> None:
    """A file that is not the published one is reported with both digests."""
    with pytest.raises(DigestMismatch, match=f"{sha256_hex(b'x')[:16]}.*{'0' * 16}"):
        check_digest(b"x", "0" * 64, where="config.json")


def test_crossing_has_a_shape_for_every_step() -> None:
    """B, L and T are filled in, constants stay."""
    crossing = Crossing(name="layer.0", dtype="F16", shape=("B", "L", "T", 64))
    assert crossing.expected_shape(batch=2, length=3, total=7) == (2, 3, 7, 64)


def test_small_documents_survive_their_bytes() -> None:
    """Proof and hint are encoded and decoded like the other documents."""
    proof = Proof(
        stage_digest="a" * 64,
        method="graph",
        graph_hash="b" * 64,
        chunks=(8, 5, 1, 1),
        shardhub="0.1.0",
        mlx="0.32.4",
        mlx_lm="0.32.2",
        device="cpu",
    )
    hint = ShardHint(stage_digest="a" * 64, index=0, start=0, stop=3, pipeline="model-pipeline")
    assert decode_identified(Proof, encode(proof), where="proof.json") == proof
    assert decode_identified(ShardHint, encode(hint), where="hint") == hint


def test_canonical_json_is_one_string_for_one_value() -> None:
    """Equal values have one encoding, whatever their key order and layout; text is UTF-8."""
    assert canonical({"b": [1, 2.5], "a": "ü"}) == '{"a":"ü","b":[1,2.5]}'.encode()
