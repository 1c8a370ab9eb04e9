"""Prompts to ids and answers to text, compared with transformers and mlx_lm on real and generated tokenizers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx_lm.utils
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from shardhub.errors import FormatError, PromptError, UnsupportedModel
from shardhub.text.detokenizer import _BYTES, Detokenizer
from shardhub.text.tokenizer import Tokenizer
from tests.selection import variants

SMALL_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json")
TEXT = "Grüß Gott, 東京! 1234 🙂👨‍👩‍👧 \n\n  two  spaces\t<|im_end|>\x00 é"
CHAT = [{"role": "user", "content": "What is the capital of France?"}]
# The printable stand-in of byte 0, which mlx_lm shows as it is: the one place where its text is not the tokens' bytes.
STAND_IN = "\u0100"


@pytest.fixture(scope="module")
def folder(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a pipeline gives a head: SmolLM2's without weights."""
    made = tmp_path_factory.mktemp("pipeline")
    for name in SMALL_FILES:
        shutil.copy(smollm2 / name, made)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Iterator[Tokenizer]:
    loaded = Tokenizer(folder, context=8192)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def wrapper(folder: Path) -> Any:
    """mlx_lm's tokenizer of the same folder."""
    return mlx_lm.utils.load_tokenizer(folder, eos_token_ids=mlx_lm.utils.load_config(folder).get("eos_token_id"))


def streamed(detokenizer: Detokenizer, ids: Sequence[int]) -> str:
    """All text of an answer; fails if a piece ends within a character."""
    pieces = [detokenizer.add(token) for token in ids]
    for piece in pieces:
        piece.encode()
    return "".join(pieces) + detokenizer.finish()


def shown_by_mlx_lm(wrapper: Any, ids: Sequence[int]) -> str:
    """The text of mlx_lm's detokenizer, read after each token as `stream_generate` does."""
    detokenizer = wrapper.detokenizer
    for token in ids:
        detokenizer.add_token(token)
        _ = detokenizer.last_segment
    detokenizer.finalize()
    return str(detokenizer.text)


def copy_with(folder: Path, target: Path, name: str, **changes: Any) -> Path:
    """A copy of the folder with entries of one JSON file set, or removed if None."""
    shutil.copytree(folder, target)
    content = json.loads((target / name).read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    (target / name).write_text(json.dumps(kept), encoding="utf-8")
    return target


def test_encoding_equals_mlx_lm(tokenizer: Tokenizer, wrapper: Any) -> None:
    """Prompts have mlx_lm's ids, with and without special tokens."""
    for add in (True, False):
        assert tokenizer.encode(TEXT, add_special_tokens=add) == wrapper.encode(TEXT, add_special_tokens=add)
    assert tokenizer.vocab_size == len(wrapper) == 49152


def test_chat_ids_equal_transformers(tokenizer: Tokenizer, folder: Path) -> None:
    """A rendered conversation has the ids of transformers' apply_chat_template."""
    hf = AutoTokenizer.from_pretrained(folder)
    turns = [*CHAT, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": TEXT}]
    for messages in (CHAT, turns, [{"role": "system", "content": "Be brief."}, *CHAT]):
        expected = hf.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert tokenizer.render_chat(messages).ids == expected
        expected = hf.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert tokenizer.render_chat(messages, ending="history").ids == expected


def test_words_of_calls_are_explained_where_a_template_has_none(folder: Path, tmp_path: Path) -> None:
    """The prompt describes the tools if the template omits them, and does not if the template writes them."""
    for template, is_helped in (("{{ messages }}", True), ("{{ tools }}{{ messages }}", False), ("{{", False)):
        model = shutil.copytree(folder, tmp_path / str(len(template)))
        configuration = json.loads((model / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps({**configuration, "chat_template": template}))
        (model / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer = Tokenizer(model)
        try:
            assert ("<tool_call>" in tokenizer.tool_words) == is_helped
        finally:
            tokenizer.close()


def test_chat_gets_no_second_first_token(folder: Path, tmp_path: Path) -> None:
    """If the template writes the first token and the tokenizer adds one, the prompt has it once."""
    made = copy_with(
        folder, tmp_path / "m", "tokenizer_config.json", chat_template="{{ bos_token }}{{ messages[0].content }}"
    )
    post = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}]}
    post["single"].append({"Sequence": {"id": "A", "type_id": 0}})  # type: ignore[attr-defined]
    post |= {"pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]}
    post |= {"special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}}
    path = made / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"post_processor": post}))
    tokenizer = Tokenizer(made)
    try:
        assert tokenizer.encode("Hi") == [1, *tokenizer.encode("Hi", add_special_tokens=False)]
        assert tokenizer.encode("<|im_start|>Hi") == tokenizer.encode("Hi")
        assert tokenizer.render_chat([{"role": "user", "content": "Hi"}]).ids == tokenizer.encode("Hi")
    finally:
        tokenizer.close()


@pytest.mark.parametrize(
    ("config", "generation"),
    variants([([0, 2], None), (2, [5, 7]), (2, None), (None, 9), (None, None), (3, 0), ([], 4)], num_default=2),
)
def test_eos_ids_equal_mlx_lm(config: Any, generation: Any, folder: Path, tmp_path: Path) -> None:
    """The ids that end an answer are those of `mlx_lm.load`, wherever they are defined."""
    made = copy_with(folder, tmp_path / "a", "config.json", eos_token_id=config)
    made = copy_with(made, tmp_path / "b", "generation_config.json", eos_token_id=generation)
    theirs = mlx_lm.utils.load_tokenizer(made, eos_token_ids=mlx_lm.utils.load_config(made).get("eos_token_id"))
    assert Tokenizer(made).eos_ids == theirs.eos_token_ids


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(0, 49300), max_size=30))
def test_byte_level_text_equals_mlx_lm(tokenizer: Tokenizer, wrapper: Any, ids: list[int]) -> None:
    """For any ids the text is mlx_lm's: partial characters, special tokens, spaces, ids beyond the vocabulary."""
    assume(not any(STAND_IN in wrapper.convert_ids_to_tokens(each) for each in ids if each < len(wrapper)))
    assert streamed(tokenizer.detokenizer(), ids) == shown_by_mlx_lm(wrapper, ids)


def test_byte_level_text_is_the_prompt_again(tokenizer: Tokenizer) -> None:
    """Encoding and streaming back returns the text, byte 0 included, if it has no leading space."""
    assert streamed(tokenizer.detokenizer(), tokenizer.encode(TEXT)) == TEXT


def test_character_is_held_back_until_it_is_whole(tokenizer: Tokenizer) -> None:
    """No piece shows part of a character, and each character comes with the token that completes it."""
    ids = tokenizer.encode("🙂")
    assert len(ids) > 1
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.add(token) for token in ids] == [""] * (len(ids) - 1) + ["🙂"]
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.add(ids[0]) == ""
    assert detokenizer.finish() == "\ufffd"


def sentence_piece(strip: bool) -> FastTokenizer:
    """A tokenizer with SentencePiece's marks and byte tokens, as Llama 2 (strip) and Gemma have."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "a",
        "b",
        "▁a",
        "▁b▁",
        "é",
        "▁▁",
    ]
    fast = FastTokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>")
    )
    fast.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    fast.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return fast


def word_piece() -> FastTokenizer:
    """A tokenizer whose decoder joins and cleans words, so that only whole lines can be decoded."""
    pieces = ["[UNK]", "a", "##b", "c", ",", "n't", "\n", "is", "é", "##é"]
    fast = FastTokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.decoder = decoders.WordPiece(cleanup=True)
    return fast


def metaspace() -> FastTokenizer:
    """A tokenizer with the plain Metaspace decoder, like T5's."""
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("▁a", -3.0), ("b", -4.0), ("\n", -5.0), ("▁é", -6.0)]
    fast = FastTokenizer(models.Unigram(pieces, unk_id=0))
    fast.decoder = decoders.Metaspace()
    return fast


def end_of_word() -> FastTokenizer:
    """A tokenizer whose tokens mark the ends of words, like XLM's and the first GPT's."""
    pieces = ["<unk>", "a", "b</w>", "ab</w>", "c", "\n</w>", ".</w>", "é</w>"]
    fast = FastTokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], end_of_word_suffix="</w>"))
    fast.decoder = decoders.BPEDecoder(suffix="</w>")
    return fast


def metaspace_with_bytes() -> FastTokenizer:
    """A tokenizer with Metaspace and byte tokens, as in conversions of SentencePiece models."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "b", "\n", "▁é"]
    fast = FastTokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return fast


def inner_byte_level() -> FastTokenizer:
    """A byte-level tokenizer whose decoder is a sequence with one element."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = FastTokenizer(models.BPE({piece: i for i, piece in enumerate([*letters, "Ġhi", "Ċ"])}, []))
    fast.decoder = decoders.Sequence([decoders.ByteLevel()])
    return fast


SENTENCE_PIECES = {"strip": sentence_piece(True), "keep": sentence_piece(False)}
BY_LINES = {
    "words": word_piece(),
    "metaspace": metaspace(),
    "end of word": end_of_word(),
    "metaspace, bytes": metaspace_with_bytes(),
    "byte level": inner_byte_level(),
}
MADE = SENTENCE_PIECES | BY_LINES


def save(made: FastTokenizer, folder: Path) -> Path:
    """Write a generated tokenizer into a folder."""
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


@pytest.fixture(scope="module", params=MADE)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Our tokenizer and mlx_lm's over one generated tokenizer."""
    made = save(MADE[request.param], tmp_path_factory.mktemp("made"))
    return Tokenizer(made), mlx_lm.utils.load_tokenizer(made)


@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_text_of_other_decoders_equals_mlx_lm(pair: tuple[Tokenizer, Any], data: st.DataObject) -> None:
    """An answer has mlx_lm's text for any ids; where the decoder works by lines, the text of the whole decoding."""
    ours, theirs = pair
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=12))
    by_lines = theirs.detokenizer.__class__.__name__.startswith("Naive")
    # Bytes that are no characters make the whole run of them none, which a stream cannot know.
    assume(not by_lines or "\ufffd" not in theirs.decode(ids))
    assert streamed(ours.detokenizer(), ids) == (theirs.decode(ids) if by_lines else shown_by_mlx_lm(theirs, ids))


@pytest.mark.parametrize("name", ["metaspace, bytes", "byte level", "strip", "keep"])
def test_characters_of_several_tokens_come_whole(name: str, tmp_path: Path) -> None:
    """A character of several tokens is shown with the last one, and each token has its bytes."""
    made = save(MADE[name], tmp_path)
    tokenizer = Tokenizer(made)
    text = "🙂é👩\u200d👧"
    letters = {byte: letter for letter, byte in _BYTES.items()}
    pieces = [letters[bytes([byte])] if name == "byte level" else f"<0x{byte:02X}>" for byte in text.encode()]
    ids = [MADE[name].token_to_id(piece) for piece in pieces]
    detokenizer = tokenizer.detokenizer()
    shown = [detokenizer.add(token) for token in ids]
    assert all("\ufffd" not in part for part in shown)
    assert [part for part in shown if part] == list(text)
    assert b"".join(tokenizer.token_bytes(token) for token in ids) == text.encode()


def test_tokens_keep_the_space_they_begin_with(tmp_path: Path) -> None:
    """A token's text is the one it has within a text, including its leading space."""
    spaced, words = Tokenizer(save(MADE["metaspace"], tmp_path / "a")), Tokenizer(save(MADE["words"], tmp_path / "b"))
    assert [spaced.token_bytes(token) for token in (3, 4, 5)] == [b" a", b"b", b"\n"]
    assert [words.token_bytes(token) for token in (1, 2, 3)] == [b" a", b"b", b" c"]


def whole_tokens(tokenizer: Any) -> st.SearchStrategy[list[int]]:
    """Lists of ids that are whole characters each."""
    ids = [token for token in range(len(tokenizer)) if "\ufffd" not in tokenizer.decode([token])]
    return st.lists(st.sampled_from(ids), min_size=1, max_size=8)


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=50)
@given(data=st.data())
def test_whole_text_is_what_transformers_decodes(pair: tuple[Tokenizer, Any], data: st.DataObject) -> None:
    """Ids that decode to a whole text give transformers' text, token by token, if their bytes are characters."""
    ours, theirs = pair
    ids = data.draw(whole_tokens(theirs))
    assert streamed(ours.text_detokenizer(), ids) == theirs.decode(ids)


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=50)
@given(data=st.data())
def test_continuation_joins_its_prompt(pair: tuple[Tokenizer, Any], data: st.DataObject) -> None:
    """A prompt's text and its continuation's join to the whole text, also where a first token would lose its space."""
    ours, theirs = pair
    prompt, ids = data.draw(whole_tokens(theirs)), data.draw(whole_tokens(theirs))
    before, whole = theirs.decode(prompt), theirs.decode([*prompt, *ids])
    assume(whole.startswith(before) and before.strip())
    assert before + streamed(ours.detokenizer(after=prompt), ids) == whole


def test_loading_opens_no_connection(folder: Path) -> None:
    """A tokenizer loads from its folder alone, also in a process that may not connect or look up a name."""
    program = (
        "import sys\n"
        "def refuse(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'): raise RuntimeError(event)\n"
        "sys.addaudithook(refuse)\n"
        "from pathlib import Path\n"
        "from shardhub.text.tokenizer import Tokenizer\n"
        "print(Tokenizer(Path(sys.argv[1])).vocab_size)\n"
    )
    command = [sys.executable, "-c", program, str(folder)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "49152\n"


def test_several_load_at_once(folder: Path) -> None:
    """Tokenizers load in several threads of a process that has not imported transformers yet."""
    program = (
        "import sys, threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from pathlib import Path\n"
        "from shardhub.text.tokenizer import Tokenizer\n"
        "together = threading.Barrier(4)\n"
        "def load(_):\n"
        "    together.wait()\n"
        "    return Tokenizer(Path(sys.argv[1])).vocab_size\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    print(set(pool.map(load, range(4))))\n"
    )
    command = [sys.executable, "-c", program, str(folder)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "{49152}\n"


def test_code_of_a_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    """A tokenizer that brings its own Python is refused, and its code is not imported."""
    made = copy_with(
        folder,
        tmp_path / "m",
        "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]},
    )
    (made / "own.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass OwnTokenizer: pass\n")
    with pytest.raises(UnsupportedModel, match="cannot be used"):
        Tokenizer(made)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"{}"])
def test_broken_tokenizer_is_refused(content: bytes | None, folder: Path, tmp_path: Path) -> None:
    """A folder without a complete tokenizer.json is refused with an error of ours."""
    made = shutil.copytree(folder, tmp_path / "m")
    (made / "tokenizer.json").unlink()
    if content is not None:
        (made / "tokenizer.json").write_bytes(content)
    with pytest.raises((FormatError, UnsupportedModel)) as caught:
        Tokenizer(made)
    assert str(made) in caught.value.what


def test_model_without_template_says_so(folder: Path, tmp_path: Path) -> None:
    """A base model without a chat template is refused, with what to do instead."""
    base = Tokenizer(copy_with(folder, tmp_path / "m", "tokenizer_config.json", chat_template=None))
    assert not base.has_chat_template
    with pytest.raises(PromptError, match="`raw`"):
        base.render_chat(CHAT)


def test_template_may_be_a_file_or_several(folder: Path, tmp_path: Path) -> None:
    """chat_template.jinja replaces the config's template; of several, `tool_use` is used with tools."""
    made = shutil.copytree(folder, tmp_path / "a")
    (made / "chat_template.jinja").write_text("from the file")
    single = Tokenizer(made)
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools[0].name }}"}]
    several = Tokenizer(copy_with(folder, tmp_path / "b", "tokenizer_config.json", chat_template=named))
    try:
        assert single.render_chat(CHAT).ids == single.encode("from the file")
        assert several.render_chat(CHAT).ids == several.encode("plain")
        assert several.render_chat(CHAT, tools=[{"name": "weather"}]).ids == several.encode("weather")
    finally:
        single.close()
        several.close()


def test_text_with_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    """A lone surrogate, as a terminal can deliver, is refused before the tokenizer sees it."""
    for call in (
        lambda: tokenizer.encode("a\udcff"),
        lambda: tokenizer.render_chat([{"role": "user", "content": "\udcff"}]),
    ):
        with pytest.raises(PromptError, match="cannot be encoded"):
            call()
