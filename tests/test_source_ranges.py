"""ranges.json: where weight files lie in the source, checked against the documents beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from shardhub.checkpoint.header import StoredTensor, encode_header
from shardhub.errors import DigestMismatch, FormatError
from shardhub.manifest import Source, Stage, WeightFile, canonical, decode, encode
from shardhub.source_ranges import Assembly, SourceRanges, decode_ranges
from shardhub.splitting.weight_layout import ComputedTensor, FileLayout
from shardhub.tensors import TensorSpec

FORMAT = Path(__file__).parent.parent / "docs" / "format.md"
SOURCE = Source(repo="org/model", commit="a" * 40)
TENSORS = {
    "model.layers.0.a.weight": TensorSpec(dtype="U32", shape=(2, 3)),
    "model.layers.0.a.scales": TensorSpec(dtype="F16", shape=(2, 1)),
    "model.layers.0.a.biases": TensorSpec(dtype="F16", shape=(2, 1)),
    "model.norm.weight": TensorSpec(dtype="F16", shape=(4,)),
}
LAYER = ("model.layers.0.a.weight", "model.layers.0.a.biases", "model.layers.0.a.scales")


def _file(name: str, tensors: tuple[str, ...]) -> WeightFile:
    specs = [(tensor, TENSORS[tensor]) for tensor in tensors]
    size_bytes = len(encode_header(specs)) + sum(spec.size_bytes for _, spec in specs)
    return WeightFile(name=name, size_bytes=size_bytes, sha256="d" * 64, tensors=tensors)


STAGE = Stage(
    source=SOURCE,
    config_digest="b" * 64,
    catalogue_digest="c" * 64,
    num_layers=1,
    start=0,
    stop=1,
    dtype="F16",
    quantization=None,
    weight_files=(_file("layer-00000.safetensors", LAYER), _file("model.norm.safetensors", ("model.norm.weight",))),
    crossings_in=(),
    crossings_out=(),
)


def _range(file: int, start: int, stop: int) -> dict[str, Any]:
    return {"file": f"model-0000{file}-of-00002.safetensors", "start": start, "stop": stop}


def _document() -> dict[str, Any]:
    return {
        "kind": "shardhub-ranges",
        "format_version": 1,
        "stage_digest": STAGE.digest,
        "source": {"repo": "org/model", "commit": "a" * 40},
        "files": [
            {
                "name": "layer-00000.safetensors",
                "ranges": [_range(1, 1004, 1028), _range(2, 496, 500), _range(1, 1000, 1004)],
            },
            {"name": "model.norm.safetensors", "ranges": [_range(2, 512, 520)]},
        ],
    }


def _decoded(document: dict[str, Any]) -> dict[str, Assembly]:
    return dict(
        decode_ranges(canonical(document), stage=STAGE, tensors=TENSORS, where="me/m-shard-0/ranges.json").by_name
    )


def test_assemblies_have_the_size_of_the_files() -> None:
    """A file's header follows from its tensors' specs and order; the ranges follow it in that order."""
    assemblies = _decoded(_document())
    assert {name: assembly.size_bytes for name, assembly in assemblies.items()} == {
        file.name: file.size_bytes for file in STAGE.weight_files
    }
    layer = assemblies["layer-00000.safetensors"]
    assert [part.start for part in layer.ranges] == [1004, 496, 1000]


def test_example_of_the_specification_is_golden() -> None:
    """The header that docs/format.md rebuilds by hand is the one that is written and read here."""
    assert _example(0) == _decoded(_document())["layer-00000.safetensors"].header


def _example(number: int) -> bytes:
    """The first bytes of a file, from one of the examples in docs/format.md."""
    text = FORMAT.read_text(encoding="utf-8").partition("### ranges.json")[2]
    length, header = re.findall(r"```text\n(.*?)```", text, re.DOTALL)[number].splitlines()
    return bytes.fromhex(length) + re.sub("␠", " ", header).encode()


def test_computed_tensor_lies_where_the_specification_says() -> None:
    """The file with a computed tensor, its range and the version are those of the example; the weight file stays."""
    places = [_range(1, 1004, 1028), _range(2, 496, 500), _range(1, 1000, 1004)]
    stored = [
        StoredTensor(spec=TENSORS[name], file=place["file"], start=place["start"], stop=place["stop"])
        for name, place in zip(LAYER, places, strict=True)
    ]
    layout = FileLayout(
        name="layer-00000.safetensors",
        header=encode_header((name, TENSORS[name]) for name in LAYER),
        tensors=LAYER,
        stored=(stored[0], ComputedTensor(spec=TENSORS[LAYER[1]], name=LAYER[1]), stored[2]),
    )
    left = layout.left
    assert left is not None
    assert left.computed is not None
    assert left.computed.header == _example(1)
    place = re.search(r'`(\{"file": "computed-.*?\})`', FORMAT.read_text(encoding="utf-8"))
    assert place is not None
    assert left.assembly.ranges[1].model_dump() == json.loads(place[1])
    document = _document()
    document["files"][0]["ranges"][1] = json.loads(place[1])
    document["format_version"] = 2
    assert _decoded(document)["layer-00000.safetensors"] == left.assembly
    assert encode(decode(SourceRanges, canonical(document), where="ranges.json")) == canonical(document)
    assert left.assembly.header == _decoded(_document())["layer-00000.safetensors"].header


def test_document_survives_its_bytes() -> None:
    """It is written in canonical form."""
    data = canonical(_document())
    assert encode(decode(SourceRanges, data, where="ranges.json")) == data


def test_later_version_is_refused_by_name() -> None:
    with pytest.raises(FormatError, match="format version 3"):
        _decoded({**_document(), "format_version": 3})


def test_source_on_another_hub_is_named() -> None:
    """Only a name is in the document, and nothing where there is no other Hub."""
    document = {**_document(), "hub": "home"}
    made = decode_ranges(canonical(document), stage=STAGE, tensors=TENSORS, where="ranges.json")
    assert made.hub == "home"
    assert '"hub":' not in encode(decode(SourceRanges, canonical(_document()), where="ranges.json")).decode()


def test_files_that_lie_in_the_repo_are_left_out() -> None:
    """Only some of the stage's files may be referred to."""
    document = _document()
    del document["files"][0]
    assert set(_decoded(document)) == {"model.norm.safetensors"}


def _changed(*path: Any, value: Any) -> dict[str, Any]:
    document: Any = _document()
    at = document
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    return document


FIRST = ("files", 0, "ranges", 0)
BAD = {
    "file by a path": _changed(*FIRST, "file", value="../model.safetensors"),
    "file by a URL": _changed(*FIRST, "file", value="https://example.org/model.safetensors"),
    "reserved name": _changed(*FIRST, "file", value="con.safetensors"),
    "negative": _changed(*FIRST, "start", value=-1),
    "backwards": _changed(*FIRST, value=_range(1, 1028, 1004)),
    "fraction": _changed(*FIRST, "start", value=1004.5),
    "too long for the tensor": _changed(*FIRST, value=_range(1, 1004, 1029)),
    "too short for the tensor": _changed(*FIRST, value=_range(1, 1004, 1027)),
    "overlapping": _changed(*FIRST, value=_range(1, 1002, 1026)),
    "another order": _changed("files", 0, "ranges", value=_document()["files"][0]["ranges"][::-1]),
    "a range more": _changed("files", 1, "ranges", value=[_range(2, 512, 516), _range(2, 516, 520)]),
    "no ranges": _changed("files", 1, "ranges", value=[]),
    "no files": _changed("files", value=[]),
    "files in another order": _changed("files", value=_document()["files"][::-1]),
    "file twice": _changed("files", value=_document()["files"][:1] * 2),
    "file of another stage": _changed("files", 1, "name", value="layer-00009.safetensors"),
    "folder as source": _changed("source", value={"repo": None, "commit": None}),
    "Hub by a URL": _changed("hub", value="https://example.org"),
    "Hub without a name": _changed("hub", value=""),
    "unknown field": _changed("endpoint", value="example.org"),
    "version 1 with a range in the shard's repo": _changed(*FIRST, "in_shard", value=True),
    "version 2 without one": _changed("format_version", value=2),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_document_is_refused(name: str) -> None:
    """Each rule of ranges.json has an example that breaks it alone."""
    with pytest.raises(FormatError, match=r"plain file name|specification|does not fit"):
        _decoded(BAD[name])


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("stage_digest",), "0" * 64, "another stage"),
        (("source", "repo"), "org/other", "another source"),
        (("source", "commit"), "b" * 40, "another source"),
    ],
)
def test_document_of_another_stage_or_source_is_refused(path: tuple[str, ...], value: str, text: str) -> None:
    """A shard's weights come from the very commit that its stage.json names."""
    with pytest.raises(DigestMismatch, match=text):
        _decoded(_changed(*path, value=value))


def test_range_of_a_tensor_that_the_model_lacks_is_refused() -> None:
    """stage.json and tensors.json decide what tensors there are."""
    tensors = {name: spec for name, spec in TENSORS.items() if "norm" not in name}
    with pytest.raises(FormatError, match=r"not in tensors\.json"):
        decode_ranges(canonical(_document()), stage=STAGE, tensors=tensors, where="ranges.json")
