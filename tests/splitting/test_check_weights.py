"""--check-weights finds NaN and infinity in float tensors while their bytes are copied, and reports nothing else."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from shardhub.checkpoint.checkpoint import Checkpoint, open_checkpoint
from shardhub.checkpoint.header import encode_header
from shardhub.checkpoint.nonfinite import first_nonfinite
from shardhub.errors import NonFiniteWeights, outcome
from shardhub.manifest import Source
from shardhub.model.dissection import Dissection
from shardhub.splitting.split import SplitResult, split
from shardhub.tensors import DTYPE_SIZES, TensorSpec
from tests import originals
from tests.checkpoints import FOLDER, contents_of, stages_of

NAN = {
    "F64": b"\0\0\0\0\0\0\xf8\x7f",
    "F32": b"\1\0\x80\x7f",
    "F16": b"\0\x7e",
    "BF16": b"\xc0\xff",
    "F8_E4M3": b"\x7f",
    "F8_E5M2": b"\x7d",
}
INFINITY = {
    "F64": b"\0\0\0\0\0\0\xf0\xff",
    "F32": b"\0\0\x80\x7f",
    "F16": b"\0\xfc",
    "BF16": b"\x80\x7f",
    "F8_E5M2": b"\xfc",
}
NAME = "model.layers.2.mlp.up_proj.weight"


def _write(folder: Path, tensors: dict[str, tuple[TensorSpec, bytes]]) -> Checkpoint:
    """A checkpoint of four layers with these tensors in its second file, finite ones in its first."""
    spec = TensorSpec(dtype="F32", shape=(8,))
    plain = {f"model.layers.{layer}.input_layernorm.weight": (spec, bytes(32)) for layer in range(4)}
    plain |= {name: (spec, bytes(32)) for name in ("model.embed_tokens.weight", "model.norm.weight")}
    folder.mkdir(exist_ok=True)
    for file, part in (("model-1.safetensors", plain), ("model-2.safetensors", tensors)):
        header = encode_header((name, spec) for name, (spec, _) in part.items())
        (folder / file).write_bytes(header + b"".join(data for _, data in part.values()))
    config = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 8, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def _split(checkpoint: Checkpoint, out: Path, *, check_weights: bool) -> SplitResult:
    stages = stages_of(checkpoint, (2,))
    return split(checkpoint, contents_of(checkpoint), stages, out, name="m", source=FOLDER, check_weights=check_weights)


def _holding(dtype: str, value: bytes, index: int, shape: tuple[int, ...]) -> dict[str, tuple[TensorSpec, bytes]]:
    """Zeros except for one element."""
    spec = TensorSpec(dtype=dtype, shape=shape)
    data = bytearray(spec.size_bytes)
    data[index * len(value) : (index + 1) * len(value)] = value
    return {NAME: (spec, bytes(data))}


def test_every_half_and_fp8_pattern_is_judged_right() -> None:
    """Of all 16-bit and 8-bit patterns, exactly those that numpy or MLX calls not finite are reported."""
    all16 = np.arange(1 << 16, dtype=np.uint16)
    all8 = np.arange(1 << 8, dtype=np.uint8)
    floats = {
        "F16": (all16, all16.view(np.float16).astype(np.float32)),
        "BF16": (all16, (all16.astype(np.uint32) << 16).view(np.float32)),
        "F8_E4M3": (all8, np.array(mx.from_fp8(mx.array(all8), dtype=mx.float32))),
    }
    for dtype, (words, values) in floats.items():
        refused = [first_nonfinite(dtype, word.tobytes()) is not None for word in words]
        np.testing.assert_array_equal(refused, ~np.isfinite(values), err_msg=dtype)


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_extremes_are_finite(dtype: str) -> None:
    """The largest and smallest values and minus zero count as finite."""
    kind = {"F32": np.float32, "F64": np.float64}[dtype]
    info = np.finfo(kind)
    values = np.array([info.max, info.min, info.tiny, -0.0, info.smallest_subnormal], kind)
    assert first_nonfinite(dtype, memoryview(values.tobytes())) is None
    for bad in (np.nan, np.inf, -np.inf):
        assert first_nonfinite(dtype, memoryview(np.array([*values, bad], kind).tobytes())) == len(values)


@pytest.mark.parametrize("dtype", [name for name in DTYPE_SIZES if name[0] in "UIB" and name != "BF16"])
def test_integers_may_be_anything(dtype: str) -> None:
    """Integer tensors are not checked: packed weights may have all bits set."""
    assert first_nonfinite(dtype, memoryview(b"\xff" * 64)) is None


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(dtype, value) for table in (NAN, INFINITY) for dtype, value in table.items()],
    ids=[f"{kind}-{dtype}" for kind, table in (("nan", NAN), ("inf", INFINITY)) for dtype in table],
)
def test_split_is_refused(dtype: str, value: bytes, tmp_path: Path) -> None:
    """Tensor, index and file are named, and no pipeline or shard is made; without the check the file is copied."""
    checkpoint = _write(tmp_path / "model", _holding(dtype, value, 3 * 5 + 4, (7, 5)))
    with pytest.raises(NonFiniteWeights, match=NAME) as caught:
        _split(checkpoint, tmp_path / "out", check_weights=True)
    assert "[3, 4]" in caught.value.why
    assert "model-2.safetensors" in caught.value.why
    assert outcome(caught.value).exit == 3
    assert not (tmp_path / "out" / "m-shard-1").exists()
    assert not (tmp_path / "out" / "m-pipeline").exists()
    assert not list((tmp_path / "out").rglob("*.writing"))
    assert _split(checkpoint, tmp_path / "unchecked", check_weights=False).pipeline is not None


@pytest.mark.parametrize("index", [0, (1 << 19) - 100, (1 << 19) + 7, 3 * (1 << 18) * 4 - 1])
def test_first_one_is_found_in_a_large_tensor(index: int, tmp_path: Path) -> None:
    """The first element is reported, in whatever piece of the copy it is, even if others follow."""
    shape = (3, 1 << 18, 4)
    holding = _holding("F16", NAN["F16"], index, shape)
    spec, data = holding[NAME]
    checkpoint = _write(tmp_path / "model", {NAME: (spec, data[:-2] + NAN["F16"])})
    with pytest.raises(NonFiniteWeights) as caught:
        _split(checkpoint, tmp_path / "out", check_weights=True)
    assert str([int(part) for part in np.unravel_index(index, shape)]) in caught.value.why


def test_checked_shards_are_the_same(tmp_path: Path) -> None:
    """Checking changes no byte of the shards."""
    checkpoint = _write(tmp_path / "model", _holding("BF16", b"\x80\x3f", 3, (7, 5)))
    for name, check in (("a", False), ("b", True)):
        _split(checkpoint, tmp_path / name, check_weights=check)
    left, right = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("m-*/*")}
        for name in "ab"
    )
    assert left == right


def test_files_of_an_unchecked_run_are_checked(tmp_path: Path) -> None:
    """Files that an earlier run copied unchecked are checked; checked ones are not read again."""
    checkpoint = _write(tmp_path / "model", _holding("F16", NAN["F16"], 0, (4,)))
    assert _split(checkpoint, tmp_path / "out", check_weights=False).pipeline is not None
    with pytest.raises(NonFiniteWeights):
        _split(checkpoint, tmp_path / "out", check_weights=True)
    sound = _write(tmp_path / "sound", _holding("F16", b"\0\x3c", 0, (4,)))
    for check in (False, True, False):
        result = _split(sound, tmp_path / "other", check_weights=check)
        assert result.pipeline is not None
    before = (tmp_path / "other" / ".shardhub-split.journal").read_bytes()
    _split(sound, tmp_path / "other", check_weights=True)
    assert (tmp_path / "other" / ".shardhub-split.journal").read_bytes() == before


def test_computed_tensors_are_checked(tmp_path: Path) -> None:
    """A NaN in one expert is reported in the tensor that the experts are joined into."""
    model = originals.write("mixtral", tmp_path / "model")
    checkpoint = open_checkpoint(model)
    expert = checkpoint.tensors["model.layers.3.block_sparse_moe.experts.2.w3.weight"]
    path = model / expert.file
    data = bytearray(path.read_bytes())
    data[expert.start : expert.start + 4] = NAN["F32"]
    path.write_bytes(data)
    checkpoint = open_checkpoint(model)
    dissection = Dissection(checkpoint.config, {name: tensor.spec for name, tensor in checkpoint.tensors.items()})
    stages = dissection.stages(list(pairwise([0, 3, 6])))
    with pytest.raises(NonFiniteWeights, match=r"layers\.3\.block_sparse_moe\.switch_mlp\.up_proj") as caught:
        split(
            checkpoint,
            dissection.model(),
            stages,
            tmp_path / "out",
            name="m",
            source=Source(repo=None, commit=None),
            check_weights=True,
        )
    assert "[2, 0, 0]" in caught.value.why
