"""Parity records: their content, and that they expose a chain that differs from the whole model."""

from __future__ import annotations

import dataclasses
import sys
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_unflatten

from shardhub.checkpoint.checkpoint import open_checkpoint
from shardhub.errors import DigestMismatch, FormatError, ProofExceeded, WeightFileError
from shardhub.manifest import Parity, Source, encode
from shardhub.model.dissection import Dissection
from shardhub.model.parity import StageTensors, _Pair, checkpoint_weights, compare
from shardhub.model.proof import StageCut
from shardhub.parity import (
    CHUNK,
    NUM_TOKENS,
    PROMPT_LENGTHS,
    Numbers,
    describe,
    file_name,
    fixed_prompt,
    numeric_class,
    one_class,
    parse_record,
    read_record_files,
)
from shardhub.splitting.cards import parity_line, with_parity_line
from shardhub.usecases.parity import ParitySettings, measure_split, record
from tests import cut, tiny

FOLDER = Source(repo=None, commit=None)
HOST = {"mlx": "0.1", "backend": "cpu", "chip": "x86_64", "cpu": "A", "os": "Linux 6.1", "blas": "libblas.so"}
ID = "a" * 64


class Opened:
    """A tiny model's folder, its parts and its cut in two."""

    def __init__(self, folder: Path, name: str = "llama") -> None:
        self.folder = cut.tiny_model(folder, name)
        self.checkpoint = open_checkpoint(self.folder)
        stored = {key: tensor.spec for key, tensor in self.checkpoint.tensors.items()}
        self.dissection = Dissection(self.checkpoint.config, stored)
        self.contents = self.dissection.model()
        self.stages = self.dissection.stages(list(pairwise([0, 2, tiny.NUM_LAYERS])))
        self.weights = checkpoint_weights(self.checkpoint, self.contents)
        self.chain = [
            StageTensors(
                cut=StageCut(
                    start=stage.start,
                    stop=stage.stop,
                    crossings_in=tuple(crossing.name for crossing in stage.crossings_in),
                    crossings_out=tuple(crossing.name for crossing in stage.crossings_out),
                ),
                tensors=stage.tensors,
            )
            for stage in self.stages
        ]

    def compare(self, chain=None, weights=None, num_tokens: int = 4):
        return compare(
            self.dissection.blueprint,
            self.dissection.anatomy,
            chain or self.chain,
            weights or self.weights,
            num_tokens=num_tokens,
        )

    def record(self) -> Parity:
        return record(
            self.dissection.blueprint,
            self.dissection.anatomy,
            self.chain,
            self.weights,
            dtype="F32",
            made_by="split",
            pipeline_id=ID,
            num_tokens=2,
        )


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(tmp_path_factory.mktemp("parity") / "model")


@pytest.fixture(scope="module")
def made(opened: Opened) -> Parity:
    return opened.record()


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_chain_of_stages_gives_the_very_numbers(name: str, tmp_path: Path) -> None:
    """With full attention and with windows shorter than a chunk, 64 of 64 tokens agree, and no logit differs."""
    model = Opened(tmp_path / "m", name)
    numbers = measure_split(model.checkpoint, model.contents, model.stages, FOLDER, ParitySettings())
    record = numbers.parity
    assert record is not None
    assert (record.num_tokens, record.tokens_equal) == (64, 64)
    assert (record.max_abs_logit_difference, record.num_nan_steps) == (0.0, 0)
    assert record.is_exact
    assert [prompt.length for prompt in record.prompts] == list(PROMPT_LENGTHS)
    assert min(PROMPT_LENGTHS) - 1 > CHUNK == record.chunk
    assert len({token for prompt in record.prompts for token in prompt.tokens}) > 1
    assert numbers.line.startswith("64 of 64 tokens, max |logit difference| 0.0, float32 reference on ")


def test_stage_that_lacks_a_tensor_is_refused(opened: Opened) -> None:
    """The placeholder of a missing tensor cannot be evaluated, so that no number is computed from it."""
    poor = [name for name in opened.chain[1].tensors if "layers.4.mlp.down_proj" not in name]
    assert len(poor) < len(opened.chain[1].tensors)
    with pytest.raises(ProofExceeded, match="used after a cut"):
        opened.compare([opened.chain[0], dataclasses.replace(opened.chain[1], tensors=poor)], num_tokens=16)


def test_nan_is_counted(opened: Opened) -> None:
    """NaN weights make NaN logits at each step; the difference stays a number."""
    name = next(name for name in opened.weights if name.endswith("layers.3.mlp.up_proj.weight"))
    weights = {**opened.weights, name: mx.full(opened.weights[name].shape, float("nan"))}
    record = opened.compare(weights=weights)
    assert record.num_nan_steps == 4
    assert record.max_abs_logit_difference == 0.0


def test_nan_of_the_stages_alone_is_a_difference(opened: Opened) -> None:
    """NaN where the whole model has a number counts as the largest difference; NaN on both sides is the model's own."""
    name = next(name for name in opened.weights if name.endswith("layers.3.mlp.up_proj.weight"))
    pair = _Pair(opened.dissection.blueprint, opened.dissection.anatomy, opened.chain, opened.weights)
    broken = {**opened.weights, name: mx.full(opened.weights[name].shape, float("nan"))}
    last = opened.chain[1].tensors
    pair._stages[1].model.update(tree_unflatten([(key, broken[key]) for key in last]))
    pair.begin()
    pair.decode(1)
    assert pair.num_nan == 1
    assert pair.difference == sys.float_info.max


def test_fewer_tokens_take_one_prompt(opened: Opened) -> None:
    assert [len(tokens) for tokens in opened.compare(num_tokens=5).tokens] == [5]
    assert [len(tokens) for tokens in opened.compare(num_tokens=NUM_TOKENS // 2 + 1).tokens] == [NUM_TOKENS // 2, 1]


def test_reference_is_what_mlx_lm_says(opened: Opened) -> None:
    """The recorded ids are those of upstream's own generate_step on the folder."""
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    whole = load_model(opened.folder)[0]
    prompt = mx.array(fixed_prompt(0, PROMPT_LENGTHS[0], tiny.VOCAB))
    steps = generate_step(prompt, whole, max_tokens=8, prefill_step_size=CHUNK)
    assert tuple(int(token) for token, _ in steps) == opened.compare(num_tokens=8).tokens[0]


def test_fixed_prompts_stay_the_same() -> None:
    """The fixed prompts of format version 1 have known bytes."""
    assert fixed_prompt(0, 4, 49152) == [36904, 32859, 26950, 9022]
    assert fixed_prompt(1, 3, 512) == fixed_prompt(1, 75, 512)[:3]
    assert fixed_prompt(0, 3, 512) != fixed_prompt(1, 3, 512)
    assert all(0 <= token < 7 for token in fixed_prompt(0, 100, 7))


def test_damaged_file_never_reaches_mlx(tmp_path: Path) -> None:
    """A weight file that changed after its header was read is refused."""
    folder = cut.tiny_model(tmp_path / "m")
    checkpoint = open_checkpoint(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    stored = {key: tensor.spec for key, tensor in checkpoint.tensors.items()}
    contents = Dissection(checkpoint.config, stored).model()
    with pytest.raises(WeightFileError):
        checkpoint_weights(checkpoint, contents)


@pytest.mark.parametrize(
    ("options", "source", "texts"),
    [
        (ParitySettings(skip=True), FOLDER, ("skipped, as requested",)),
        (ParitySettings(memory="1MB"), FOLDER, ("weights 1.4", "budget is 1.00 MB")),
        (ParitySettings(), Source(repo="a/b", commit="c" * 40), ("read from the Hub", "1.4")),
    ],
)
def test_stages_that_were_not_run_are_reported(
    opened: Opened, options: ParitySettings, source: Source, texts: tuple[str]
) -> None:
    """Without a record the line says what was proven instead, and why the stages were not run."""
    numbers = measure_split(opened.checkpoint, opened.contents, opened.stages, source, options)
    assert numbers.parity is None
    assert numbers.line.startswith("proven by graph; not run: ")
    assert all(text in numbers.line for text in texts), numbers.line


def test_record_is_read_back(made: Parity, tmp_path: Path) -> None:
    path = tmp_path / file_name(made)
    path.parent.mkdir()
    path.write_bytes(encode(made))
    [(name, data)] = read_record_files(tmp_path).items()
    assert parse_record(name, data, pipeline_id=ID, where="here") == made


def test_changed_record_is_refused(made: Parity) -> None:
    """A record with another name than its digest, another pipeline, other fields or impossible counts is refused."""
    name, data = file_name(made).rpartition("/")[2], encode(made)
    with pytest.raises(DigestMismatch, match="its name says"):
        parse_record(name, data.replace(b'"tokens_equal":2', b'"tokens_equal":1'), pipeline_id=ID, where="x")
    with pytest.raises(DigestMismatch, match="another pipeline"):
        parse_record(name, data, pipeline_id="b" * 64, where="x")
    with pytest.raises(FormatError, match="name of a parity record"):
        parse_record("record.json", data, pipeline_id=ID, where="x")
    for change in ({"tokens_equal": 3}, {"num_tokens": 5}, {"extra": 1}, {"max_abs_logit_difference": -1.0}):
        forged = {**made.model_dump(mode="json"), **change}
        with pytest.raises(FormatError):
            parse_record(*named(forged), pipeline_id=ID, where="x")


def named(value: dict) -> tuple[str, bytes]:
    """A record with any content, under the name that its bytes require."""
    from shardhub.manifest import canonical, sha256_hex

    data = canonical(value)
    return f"20260101T000000Z-cpu-{sha256_hex(data)[:16]}.json", data


def test_class_is_what_decides_numbers() -> None:
    """A class ignores Linux kernel releases and depends on BLAS, processor and MLX; unknown parts equal nothing."""
    own = numeric_class(HOST)
    assert one_class([own, numeric_class({**HOST, "os": "Linux 6.9", "memory_bytes": "1"})])
    for change in ({"blas": "libopenblas.so"}, {"cpu": "B"}, {"mlx": "0.2"}, {"backend": "metal"}, {"os": "Darwin 24"}):
        assert not one_class([own, numeric_class({**HOST, **change})])
    assert not one_class([numeric_class({}), numeric_class({})])


def test_card_line_is_replaced_in_place(made: Parity) -> None:
    """The line of a card changes, and nothing around it; a card with no such line, or two, is left alone."""
    before = f"# Card\n\n{parity_line(Numbers(not_run='weights 404 GB'))}\n\nmore\n"
    after = with_parity_line(before, Numbers(parity=made))
    assert after.startswith("# Card\n\n<!-- parity -->2 of 2 tokens")
    assert after.endswith("<!-- /parity -->\n\nmore\n")
    assert "404" not in after
    assert with_parity_line("# Card\n", Numbers(parity=made)) == "# Card\n"
    assert with_parity_line(before + before, Numbers(parity=made)) == before + before


def test_record_reads_as_a_sentence(made: Parity) -> None:
    other = made.model_copy(update={"tokens_equal": 1, "max_abs_logit_difference": 3.7e-05, "num_nan_steps": 1})
    assert describe(made).startswith("2 of 2 tokens, max |logit difference| 0.0, float32 reference on ")
    assert describe(other).startswith("1 of 2 tokens, max |logit difference| 3.7e-05, NaN at 1 steps, float32")
