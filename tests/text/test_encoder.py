"""Untrusted tokenizers and texts: an encoding that fails or never ends is stopped."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from shardhub.errors import ContextExceeded, PromptError, UnsupportedModel
from shardhub.text.encoder import _FIRST_CHARS, Encoder
from shardhub.text.tokenizer import Tokenizer
from tests.waiting import wait_until

# Minutes of work for a tokenizer that is not stopped.
LONG = "ab " * (4 << 20)
# A text is refused by its beginning, or a worker is ended after seconds of CPU time; machines may be busy.
SOON_S = 30


def fast(**parts) -> FastTokenizer:
    """A tokenizer of three letters."""
    made = FastTokenizer(models.BPE({"a": 0, "b": 1, " ": 2, "ab": 3}, [("a", "b")], unk_token="b"))
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def panicking() -> FastTokenizer:
    """A tokenizer whose expression makes the library panic for some texts."""
    return fast(pre_tokenizer=pre_tokenizers.Split(Regex(r"(a|aa)+$"), "isolated"))


def doubling() -> FastTokenizer:
    """A tokenizer whose rules turn a letter into four thousand million."""
    return fast(normalizer=normalizers.Sequence([normalizers.Replace("a", "aa")] * 32))


@pytest.fixture
def encoder(request):
    made = Encoder(request.param().to_str, plain_special_tokens=False)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("encoder", "text"), [(panicking, "a" * 200 + "b"), (doubling, "a")], indirect=["encoder"], ids=["panic", "endless"]
)
def test_a_tokenizer_that_goes_wrong_is_a_prompt_error(encoder, text) -> None:
    """A panic, or a lack of memory or time, is a prompt error; the next text is encoded."""
    with pytest.raises(PromptError, match="tokenizer"):
        encoder.encode(text, add_special_tokens=True)
    assert encoder.encode("bb", add_special_tokens=True) == [1, 1]


@pytest.mark.parametrize("encoder", [fast], indirect=True)
def test_ids_are_those_of_the_library(encoder) -> None:
    """The ids equal the library's, for texts of any length, with and without a limit."""
    library = fast()
    for text in ("", "ab", "ab " * _FIRST_CHARS):
        ids = library.encode(text).ids
        assert encoder.encode(text, add_special_tokens=True) == ids
        assert encoder.encode(text, add_special_tokens=True, max_ids=len(ids) + 1) == ids


@pytest.mark.parametrize("encoder", [fast], indirect=True)
def test_a_text_that_cannot_fit_is_not_cut_to_its_end(encoder) -> None:
    """A text with too many ids is not encoded to its end; a long text with few ids passes."""
    began_at = time.monotonic()
    with pytest.raises(ContextExceeded, match="more than"):
        encoder.encode(LONG, add_special_tokens=True, max_ids=1000)
    assert time.monotonic() - began_at < SOON_S
    merged = Encoder(fast(normalizer=normalizers.Replace(Regex("a+"), "a")).to_str, plain_special_tokens=False)
    try:
        assert merged.encode("a" * (1 << 20), add_special_tokens=True, max_ids=10) == [0]
    finally:
        merged.close()


@pytest.mark.parametrize("encoder", [doubling], indirect=True)
def test_closing_does_not_wait_for_an_answer(encoder) -> None:
    """Closing ends a busy process, and the waiting caller gets an error."""
    encoder.start()
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            encoder.encode("a" * 50, add_special_tokens=True)
        except PromptError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    sandbox = encoder._sandboxes._all[-1]
    wait_until(sandbox._lock.locked)
    encoder.close()
    thread.join(SOON_S)
    assert errors


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_rules_that_build_on_each_other_are_refused(tmp_path: Path, part) -> None:
    """Such rules are refused before they run: loading a tokenizer and decoding a token cannot be stopped."""
    kind = normalizers if part == "normalizer" else decoders
    made = fast(**{part: kind.Sequence([kind.Replace("a", "aa")] * 32)})
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedModel, match="times as long"):
        Tokenizer(tmp_path)


def test_a_tokenizer_that_panics_ends_in_an_error_of_ours(tmp_path: Path) -> None:
    """The error is ours, whether a prompt is encoded or a conversation rendered."""
    panicking().save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages[0].content }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer = Tokenizer(tmp_path)
    try:
        for call in (tokenizer.encode, lambda text: tokenizer.render_chat([{"role": "user", "content": text}])):
            with pytest.raises(PromptError, match="cannot encode"):
                call("a" * 200 + "b")
            assert call("ab")
    finally:
        tokenizer.close()
