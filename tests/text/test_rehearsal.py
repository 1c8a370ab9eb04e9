"""Trying out a model's tokenizer before a weight is copied."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from shardhub.errors import FormatError, UnsupportedModel
from shardhub.text.rehearsal import rehearse
from shardhub.text.tokenizer import Tokenizer
from tests import tiny

CONFIG = json.dumps({"model_type": "llama", "vocab_size": tiny.VOCAB}).encode()
SETTINGS = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The small files of a proper model."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.save_tokenizer(folder)
    return {"config.json": CONFIG, **{path.name: path.read_bytes() for path in folder.iterdir()}}


@pytest.fixture(scope="module")
def sentences() -> bytes:
    """A SentencePiece model of a few sentences, with byte tokens."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "hello world how are you"] * 40),
        model_writer=written,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",  # as Llama has it
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return written.getvalue()


def changed(files: dict[str, bytes], **settings: Any) -> dict[str, bytes]:
    """The same files with changed fields in tokenizer_config.json."""
    own = json.loads(files["tokenizer_config.json"])
    return {**files, "tokenizer_config.json": json.dumps({**own, **settings}).encode()}


def test_proper_tokenizer_is_left_as_it_is(files: dict[str, bytes]) -> None:
    """A working tokenizer is left as it is, without a note."""
    rehearsal = rehearse(files, where="model", num_rows=tiny.VOCAB)
    assert (rehearsal.files, rehearsal.left_out, rehearsal.notes) == ({}, frozenset(), ())


def test_sentencepiece_model_becomes_a_fast_tokenizer(sentences: bytes, tmp_path: Path) -> None:
    """A lone tokenizer.model is converted to a fast tokenizer with the same pieces."""
    source = {
        "config.json": CONFIG,
        "tokenizer.model": sentences,
        "tokenizer_config.json": json.dumps(SETTINGS).encode(),
    }
    rehearsal = rehearse(source, where="model")
    assert "SentencePiece" in rehearsal.notes[0]
    for name, data in {**source, **rehearsal.files}.items():
        (tmp_path / name).write_bytes(data)
    tokenizer = Tokenizer(tmp_path)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentences)
    for text in ("hello world", "the cat é 你好", "two  blanks"):
        assert tokenizer.encode(text, add_special_tokens=False) == pieces.encode(text)
    tokenizer.close()


def test_special_tokens_of_a_sentencepiece_model_are_kept(sentences: bytes) -> None:
    """Without tokenizer_config.json the special tokens of the SentencePiece model are kept."""
    rehearsal = rehearse({"config.json": CONFIG, "tokenizer.model": sentences}, where="model")
    assert json.loads(rehearsal.files["tokenizer_config.json"])["eos_token"] == "</s>"


def test_vocabulary_with_merges_becomes_a_fast_tokenizer(files: dict[str, bytes]) -> None:
    """vocab.json with merges.txt, as GPT-2 has, is converted."""
    model = json.loads(files["tokenizer.json"])["model"]
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    source = {
        "config.json": CONFIG,
        "tokenizer_config.json": json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"}).encode(),
        "vocab.json": json.dumps(model["vocab"]).encode(),
        "merges.txt": f"#version: 0.2\n{merges}\n".encode(),
    }
    assert json.loads(rehearse(source, where="model").files["tokenizer.json"])["model"]["vocab"] == model["vocab"]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"tokenizer.json": b"{"}, FormatError, "model/tokenizer.json is not JSON"),
        ({"tokenizer.json": None}, UnsupportedModel, "model has no tokenizer"),
        (
            {"tokenizer.json": None, "tiktoken.model": b"IQ== 0\n"},
            UnsupportedModel,
            "tokenizer is a tiktoken file",
        ),
        (
            {"tokenizer.json": None, "tokenizer.model": b"garbage"},
            UnsupportedModel,
            "tokenizer is a SentencePiece model",
        ),
    ],
)
def test_tokenizer_that_cannot_be_used_is_refused(
    change: dict[str, bytes | None], error: type[Exception], text: str, files: dict[str, bytes]
) -> None:
    """A tokenizer that a head could not use is refused, with the model's name and what to do."""
    all_files = {**files, **change}
    with pytest.raises(error, match=text) as caught:
        rehearse({name: data for name, data in all_files.items() if data is not None}, where="model")
    assert "mlx_lm.convert" in caught.value.hint  # type: ignore[attr-defined]


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages[0].a.b.c }}", 7, ["x"], {"a": 1}])
def test_chat_template_that_cannot_be_used_is_refused(template: object, files: dict[str, bytes]) -> None:
    """A template that refuses every conversation, or is not text, is refused before anything is copied."""
    with pytest.raises((UnsupportedModel, FormatError)):
        rehearse(changed(files, chat_template=template), where="model")


def test_template_that_refuses_one_message_is_reported(files: dict[str, bytes]) -> None:
    """A template that refuses the trial message is noted with its words, and the model is accepted."""
    notes = rehearse(
        changed(files, chat_template="{{ raise_exception('give a system message') }}"), where="model"
    ).notes
    assert notes == ("the chat template refuses a conversation of one user message: give a system message",)


def test_templates_of_a_folder_go_with_the_tokenizer(files: dict[str, bytes]) -> None:
    """Further chat templates of a folder are put in tokenizer_config.json, which a pipeline carries."""
    source = {
        **files,
        "chat_template.jinja": b"default {{ messages }}",
        "additional_chat_templates/tool_use.jinja": b"tools {{ messages }}",
    }
    rehearsal = rehearse(source, where="model")
    templates = json.loads(rehearsal.files["tokenizer_config.json"])["chat_template"]
    assert {each["name"]: each["template"] for each in templates} == {
        "default": "default {{ messages }}",
        "tool_use": "tools {{ messages }}",
    }
    assert "chat_template.jinja" in rehearsal.left_out


def test_code_of_a_tokenizer_is_left_out_only_if_asked(files: dict[str, bytes]) -> None:
    """`auto_map` in tokenizer_config.json is refused, or removed if code is to be ignored."""
    own = changed(files, tokenizer_class="OwnTokenizer", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]})
    with pytest.raises(UnsupportedModel):
        rehearse(own, where="model")
    assert "auto_map" not in json.loads(rehearse(own, where="model", ignore_code=True).files["tokenizer_config.json"])


def test_tokens_beyond_the_models_rows_are_reported(files: dict[str, bytes]) -> None:
    """A tokenizer with more ids than the model has rows gets a note."""
    assert "but the model has 500 embedding rows" in rehearse(files, where="model", num_rows=500).notes[0]
