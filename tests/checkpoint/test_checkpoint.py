"""Reading model folders, and the checks that every weight file passes before MLX reads it."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from shardhub.checkpoint.checkpoint import open_checkpoint, verify_weight_file
from shardhub.checkpoint.config import num_layers, parse_config, quantization, text_config
from shardhub.checkpoint.costs import model_costs
from shardhub.checkpoint.header import FileSource, encode_header, parse_header, read_header
from shardhub.checkpoint.tensor_names import is_expert, layer_index, place
from shardhub.errors import (
    DigestMismatch,
    FormatError,
    IntegrityError,
    UnsupportedModel,
    UsageError,
    WeightFileError,
)
from shardhub.manifest import WeightFile, sha256_hex
from shardhub.tensors import DTYPE_SIZES, TensorSpec
from tests.checkpoints import write_checkpoint
from tests.corpus import MALFORMED, WELL_FORMED, build, entry


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_file_is_refused(name: str, tmp_path: Path) -> None:
    """Every malformed file of the corpus is refused by name, quickly and in little memory."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(MALFORMED[name])
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(WeightFileError) as caught:
        read_header(path)
    seconds = time.monotonic() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in caught.value.what
    assert caught.value.why
    assert len(str(caught.value)) < 2000
    assert seconds < 15
    assert peak < 200 << 20


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_file_is_refused_where_it_is_read_by_ranges(name: str, tmp_path: Path) -> None:
    """Our own rules refuse all that the reference reader refuses, since they alone check files on the Hub."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(MALFORMED[name])
    with FileSource(path) as source, pytest.raises(WeightFileError, match="not a valid safetensors file"):
        parse_header(source, file=path.name)


def test_corpus_is_large_enough() -> None:
    """The corpus keeps at least the thirty measured defects, and three controls."""
    assert len(MALFORMED) >= 60
    assert len(WELL_FORMED) >= 3


@pytest.mark.parametrize("name", WELL_FORMED)
def test_well_formed_file_is_read(name: str, tmp_path: Path) -> None:
    """The well-formed control files are read, so that the others are refused for their own defects."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(WELL_FORMED[name])
    header = read_header(path)
    assert header.size_bytes == len(WELL_FORMED[name])
    assert sum(tensor.stop - tensor.start for tensor in header.tensors.values()) == sum(
        tensor.spec.size_bytes for tensor in header.tensors.values()
    )


def test_message_names_tensor_and_both_values(tmp_path: Path) -> None:
    """A refusal says which tensor is wrong and which two values disagree."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(build({"layer.weight": entry(shape=(2, 3))}, bytes(16)))
    with pytest.raises(WeightFileError, match=r"layer\.weight.*takes 24 bytes.*span 16"):
        read_header(path)


def test_ranges_are_those_of_the_bytes(tmp_path: Path) -> None:
    """The half-open ranges of a header select exactly the bytes of each tensor."""
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(5, dtype=np.uint8)}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    data = path.read_bytes()
    for name, stored in read_header(path).tensors.items():
        assert data[stored.start : stored.stop] == tensors[name].tobytes()
        assert stored.spec.shape == tensors[name].shape


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPE_SIZES)), st.lists(st.integers(0, 5), max_size=4)),
        max_size=8,
    )
)
def test_written_header_is_read_again(tmp_path_factory: pytest.TempPathFactory, specs: dict) -> None:
    """Our reader and the safetensors library both read back what `encode_header` writes, aligned to eight bytes."""
    tensors = [(name, TensorSpec(dtype=dtype, shape=tuple(shape))) for name, (dtype, shape) in specs.items()]
    tensors.sort(key=lambda item: -DTYPE_SIZES[item[1].dtype])
    header = encode_header(tensors)
    path = tmp_path_factory.mktemp("header") / "model.safetensors"
    path.write_bytes(header + bytes(sum(spec.size_bytes for _, spec in tensors)))
    assert len(header) % 8 == 0
    assert {name: stored.spec for name, stored in read_header(path).tensors.items()} == dict(tensors)


@given(st.binary(max_size=200), st.integers(0, 250))
def test_random_damage_never_passes_unnoticed(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    """A damaged file is refused, or is still a file that the reference library reads in the same way."""
    good = WELL_FORMED["scalar_empty_and_wide"]
    path = tmp_path_factory.mktemp("damage") / "model.safetensors"
    path.write_bytes(good[:at] + noise + good[at + len(noise) :])
    try:
        header = read_header(path)
    except WeightFileError:
        return
    try:
        reference = load_file(path)
    except (SafetensorError, KeyError, TypeError, AttributeError):  # dtypes that numpy lacks
        return
    assert {name: tuple(array.shape) for name, array in reference.items()} == {
        name: stored.spec.shape for name, stored in header.tensors.items()
    }


def test_checkpoint_knows_every_tensor(tmp_path: Path) -> None:
    """A checkpoint of several files names every tensor once, with its file and range."""
    tensors = write_checkpoint(tmp_path / "model", num_files=3)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, stored in checkpoint.tensors.items():
        data = (tmp_path / "model" / stored.file).read_bytes()
        assert data[stored.start : stored.stop] == tensors[name].tobytes()
    assert checkpoint.size_bytes == sum(array.nbytes for array in tensors.values())
    assert checkpoint.config["time_step_limit"] == [0.0, float("inf")]


def test_checkpoint_without_index_is_read(tmp_path: Path) -> None:
    """Without an index every model file of the folder is read."""
    tensors = write_checkpoint(tmp_path, num_files=2)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert open_checkpoint(tmp_path).tensors.keys() == tensors.keys()


def test_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    """A tensor that two files hold is ambiguous."""
    write_checkpoint(tmp_path, num_files=1)
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model-copy.safetensors").write_bytes((tmp_path / "model-00001-of-00001.safetensors").read_bytes())
    with pytest.raises(WeightFileError, match="in two files"):
        open_checkpoint(tmp_path)


def test_missing_weight_file_is_named(tmp_path: Path) -> None:
    """A weight file that the index names and the folder lacks is reported as missing, not as damaged."""
    write_checkpoint(tmp_path, num_files=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightFileError, match="model-00002-of-00002"):
        open_checkpoint(tmp_path)


def test_tensor_the_index_promises_is_missed(tmp_path: Path) -> None:
    """A head that the index names and no file holds is reported: mlx-lm would take the head for a tied one."""
    write_checkpoint(tmp_path, num_files=1)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.scales"] = "model-00001-of-00001.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightFileError, match=r"lm_head\.scales"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "x\0.safetensors", "CON"]
)
def test_index_cannot_leave_the_folder(file: str, tmp_path: Path) -> None:
    """File names in an index are plain names."""
    write_checkpoint(tmp_path, num_files=1)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(FormatError, match="plain file name"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 5}}', "{", '{"a":1,"a":2}'])
def test_broken_index_is_refused(index: str, tmp_path: Path) -> None:
    """An index that cannot be parsed is refused, not skipped."""
    write_checkpoint(tmp_path, num_files=1)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(FormatError):
        open_checkpoint(tmp_path)


def test_other_formats_are_told_how_to_convert(tmp_path: Path) -> None:
    """A folder of pickles or GGUF is refused with the command that converts it."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedModel, match=r"mlx_lm\.convert"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("marker", "noun"), [("stage.json", "shard"), ("shardhub.json", "pipeline")])
def test_our_own_folders_are_refused_as_models(marker: str, noun: str, tmp_path: Path) -> None:
    """A shard or a pipeline given as a model is named as what it is."""
    (tmp_path / marker).write_text("{}")
    with pytest.raises(UsageError, match=noun):
        open_checkpoint(tmp_path)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """A missing folder, and a folder without config.json, are usage errors."""
    with pytest.raises(UsageError, match="not a folder"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(UsageError, match=r"config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": 0},
        {"hidden_size": -1},
        {"hidden_size": 2**31},
        {"hidden_size": 8.5},
        {"hidden_size": True},
        {"num_hidden_layers": 10**9},
        {"vocab_size": 2**40},
        {"num_attention_heads": "4"},
        {"num_key_value_heads": [2, -1]},
        {"rope_theta": float("nan")},
        {"rope_scaling": {"factor": float("inf")}},
        {"text_config": {"hidden_size": -5}},
    ],
)
def test_config_out_of_bounds_is_refused(config: dict) -> None:
    """Impossibly large numbers are refused with the field's name, before anything is sized by them."""
    field = next(iter(config))
    with pytest.raises(FormatError, match="hidden_size" if field == "text_config" else field):
        parse_config(json.dumps(config).encode(), where="config.json")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'{"a":1,"a":2}', b"\xff", b'{"a":"\\ud800"}', b'{"a":' + b"[" * 100_000, b"5"]
)
def test_broken_config_is_refused(data: bytes) -> None:
    """A config.json that is not one JSON object in UTF-8, or has a key twice, is refused."""
    with pytest.raises(FormatError):
        parse_config(data, where="config.json")


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 7},
        {"n_layer": 7},
        {"n_layers": 7},
        {"num_layers": 7},
        {"num_transformer_layers": 7},
        {"text_config": {"num_hidden_layers": 7}, "num_hidden_layers": 3},
        {"hybrid_override_pattern": "M-M*M-M"},
    ],
)
def test_number_of_layers_is_found(config: dict) -> None:
    """The field names of mlx-lm's modules are known, and the text model's count is taken."""
    assert num_layers(config) == 7


def test_number_of_layers_is_asked_for() -> None:
    """A configuration without a number of layers is refused, not guessed at."""
    with pytest.raises(UnsupportedModel, match="num_hidden_layers"):
        num_layers({"model_type": "x"})
    assert text_config({"a": 1}) == {"a": 1}


def test_quantization_is_found() -> None:
    """mlx-lm's quantisation is read; other methods are refused."""
    read = quantization({"quantization": {"bits": 4, "group_size": 64, "model.embed": {"bits": 8}}})
    assert read is not None
    assert (read.bits, read.group_size, read.mode) == (4, 64, "affine")
    assert quantization({"quantization_config": {"quant_method": "fp8"}}) is None
    with pytest.raises(FormatError, match="quantization"):
        quantization({"quantization": {"bits": 400, "group_size": 64}})


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.12.self_attn.q_proj.weight", 12),
        ("transformer.h.3.attn.weight", 3),
        ("transformer.blocks.0.ffn.weight", 0),
        ("language_model.model.layers.5.mlp.experts.3.up.weight", 5),
        ("model.layers.7.mlp.layers.2.weight", 7),
        ("model.layers.20.eh_proj.weight", None),
        ("model.vision_tower.encoder.layers.3.weight", None),
        ("visual.blocks.3.weight", None),
        ("audio_tower.layers.1.weight", None),
        ("mtp.layers.0.weight", None),
        ("model.embed_tokens.weight", None),
        ("model.norm.weight", None),
    ],
)
def test_layer_of_a_tensor(name: str, layer: int | None) -> None:
    """Tensors of decoder layers are distinguished from those of towers, experts and draft heads."""
    assert layer_index(name, 20) == layer


def test_place_of_a_tensor() -> None:
    """Embedding, head and tensors outside the text model are distinguished."""
    places = {
        "model.embed_tokens.weight": "embedding",
        "transformer.wte.weight": "embedding",
        "lm_head.scales": "head",
        "model.norm.weight": "head",
        "vision_tower.x.weight": "other",
        "model.layers.61.x.weight": "other",
        "model.layers.6.x.weight": "layer",
    }
    assert {name: place(name, 61) for name in places} == places
    assert is_expert("model.layers.0.mlp.switch_mlp.up_proj.weight")
    assert not is_expert("model.layers.0.mlp.shared_experts.up_proj.weight")


def _shipped(path: Path) -> tuple[WeightFile, dict[str, TensorSpec]]:
    header = read_header(path)
    catalogue = {name: stored.spec for name, stored in header.tensors.items()}
    file = WeightFile(
        name=path.name,
        size_bytes=header.size_bytes,
        sha256=sha256_hex(path.read_bytes()),
        tensors=tuple(header.tensors),
    )
    return file, catalogue


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "layer-00000.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}, path)
    return path


def test_gate_passes_the_promised_file(weights: Path) -> None:
    """The published file is accepted."""
    file, catalogue = _shipped(weights)
    verify_weight_file(weights, file, catalogue)


def test_gate_sees_a_flipped_bit(weights: Path) -> None:
    """A flipped bit of one weight is a digest mismatch."""
    file, catalogue = _shipped(weights)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DigestMismatch):
        verify_weight_file(weights, file, catalogue)


@pytest.mark.parametrize("cut", [1, 16, 100])
def test_gate_sees_a_truncated_file(weights: Path, cut: int) -> None:
    """A file that ends early is refused, whichever part is missing."""
    file, catalogue = _shipped(weights)
    weights.write_bytes(weights.read_bytes()[:-cut])
    with pytest.raises(IntegrityError):
        verify_weight_file(weights, file, catalogue)


def test_gate_lists_missing_and_extra_tensors(weights: Path) -> None:
    """Names that do not agree with the stage's are listed."""
    file, catalogue = _shipped(weights)
    changed = file.model_copy(update={"tensors": ("a", "c")})
    with pytest.raises(WeightFileError, match=r"missing: c; extra: b"):
        verify_weight_file(weights, changed, catalogue)


def test_gate_sees_another_order(weights: Path) -> None:
    """A file with its tensors in another order is refused."""
    file, catalogue = _shipped(weights)
    changed = file.model_copy(update={"tensors": tuple(reversed(file.tensors))})
    with pytest.raises(WeightFileError, match="differ from the stage's \\(their order\\)"):
        verify_weight_file(weights, changed, catalogue)


@pytest.mark.parametrize("spec", [TensorSpec(dtype="F32", shape=(3, 2)), TensorSpec(dtype="I32", shape=(2, 3)), None])
def test_gate_sees_wrong_shape_and_dtype(weights: Path, spec: TensorSpec | None) -> None:
    """The right name with another shape or dtype, or one that the catalogue lacks, is refused by name."""
    file, catalogue = _shipped(weights)
    changed = {name: own for name, own in catalogue.items() if name != "a"} | ({"a": spec} if spec else {})
    with pytest.raises(WeightFileError, match=r"a is F32 \[2, 3\]"):
        verify_weight_file(weights, file, changed)


def test_gate_sees_a_wrong_size_and_a_missing_file(weights: Path) -> None:
    """Size is checked before content, and a missing file has its own message."""
    file, catalogue = _shipped(weights)
    with pytest.raises(WeightFileError, match="bytes, but the stage says"):
        verify_weight_file(weights, file.model_copy(update={"size_bytes": file.size_bytes + 1}), catalogue)
    with pytest.raises(WeightFileError, match="cannot be opened"):
        verify_weight_file(weights.with_name("none.safetensors"), file, catalogue)


def test_costs_count_embedding_and_head_where_they_live(tmp_path: Path) -> None:
    """Tied or not, the stages' bytes are those of their tensors; a single stage counts a tied table once."""
    for tied in (True, False):
        tensors = write_checkpoint(tmp_path / str(tied), num_layers=4, tied=tied)
        costs = model_costs(open_checkpoint(tmp_path / str(tied)), 100)
        whole = sum(array.nbytes for array in tensors.values())
        table = tensors["model.embed_tokens.weight"].nbytes
        assert costs.size_bytes(0, 4) == whole
        assert costs.size_bytes(0, 2) + costs.size_bytes(2, 4) == whole + (table if tied else 0)
        assert costs.read_bytes(0, 2) == costs.size_bytes(0, 2) - table
        assert costs.read_bytes(2, 4) == costs.size_bytes(2, 4)
        # 2 KV heads of dimension 2, keys and values, 2 bytes.
        assert costs.kv_bytes(1, 3, 100) == 2 * 100 * 2 * 2 * 2 * 2


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"kv_lora_rank": 8, "qk_rope_head_dim": 4, "model_type": "deepseek_v3"}, 4 * 100 * 12 * 2),
        (
            {
                "kv_lora_rank": 8,
                "qk_rope_head_dim": 4,
                "qk_nope_head_dim": 6,
                "v_head_dim": 5,
                "model_type": "deepseek_v2",
            },
            4 * 100 * 4 * 15 * 2,
        ),
        ({"head_dim": 16}, 4 * 100 * 2 * 2 * 16 * 2),
        (
            {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 10},
            2 * (100 + 10) * 2 * 2 * 2 * 2,
        ),
        ({"sliding_window_pattern": 4, "sliding_window": 10}, (100 + 3 * 10) * 2 * 2 * 2 * 2),
        ({"layer_types": ["conv"] * 4, "conv_L_cache": 3}, 4 * 8 * 3 * 2),
    ],
)
def test_kv_follows_the_configuration(config: dict, expected: int, tmp_path: Path) -> None:
    """Latent attention, windows and recurrent states are counted as mlx-lm caches them."""
    write_checkpoint(tmp_path, num_layers=4, config=config)
    assert model_costs(open_checkpoint(tmp_path), 100).kv_bytes(0, 4, 100) == expected


def test_experts_count_as_often_as_they_are_read(tmp_path: Path) -> None:
    """Of routed experts a token reads its share; of everything else, all."""
    names = ["model.layers.0.mlp.switch_mlp.up_proj.weight", "model.layers.0.mlp.shared_experts.up_proj.weight"]
    save_file({name: np.zeros((8, 10), np.float16) for name in names}, tmp_path / "model.safetensors")
    config = {"num_hidden_layers": 1, "num_experts": 8, "num_experts_per_tok": 2, "num_attention_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 8}))
    layer = model_costs(open_checkpoint(tmp_path), 10).layers[0]
    assert (layer.size_bytes, layer.read_bytes) == (320, 160 + 160 // 4)


def test_estimates_are_reported(tmp_path: Path) -> None:
    """Where the configuration leaves something out, the plan's notes state the assumption."""
    write_checkpoint(
        tmp_path, config={"num_attention_heads": None, "num_key_value_heads": None, "layer_types": ["x"] * 4}
    )
    notes = " ".join(model_costs(open_checkpoint(tmp_path), 100).notes)
    assert "config.json does not state the number of KV heads" in notes
    assert "kind x" in notes
