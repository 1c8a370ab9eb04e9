"""Converts tokenizers in other formats to tokenizer.json, once, when a model is split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shardhub.errors import UnsupportedModel
from shardhub.text.tokenizer_files import TOKENIZER_FILE, TOKENIZER_SETTINGS, load_tokenizer, quieten_transformers

INSTEAD = (
    "Put the tokenizer of the original model (tokenizer.json, tokenizer_config.json) beside the weights, or convert "
    "the model again: mlx_lm.convert --hf-path ORIGINAL --mlx-path FOLDER"
)
# Both tokenizers must agree on these: blanks, other scripts, text without tokens, names of special tokens.
_SAMPLES = (
    "Hello, world! It's 12.5% off.",
    "  two  blanks\n\n\tand\ta\ttab  ",
    "Grüße, мир, 你好 😀👩‍👩‍👧",
    "<s>a</s><|im_start|>b<|endoftext|>[INST]c",
    "▁",
    "",
)
_FORMS = {
    ".model": "a SentencePiece model",
    ".tiktoken": "a tiktoken file",
    "tiktoken.model": "a tiktoken file",
    "tekken.json": "a tekken file",
    "vocab.json": "vocab.json with merges.txt",
    "vocab.txt": "a list of words",
}


def form_of(folder: Path) -> str | None:
    """The format of the tokenizer in a folder without tokenizer.json; None if there is no tokenizer."""
    names = [path.name for path in sorted(folder.iterdir())]
    return next((form for end, form in reversed(_FORMS.items()) for name in names if name.endswith(end)), None)


def convert_tokenizer(folder: Path) -> dict[str, bytes]:
    """Convert a folder's tokenizer to tokenizer.json, by transformers, and return the new files by name.

    Args:
        folder: A folder without tokenizer.json.

    Raises:
        UnsupportedModel: transformers cannot convert the tokenizer, or the result tokenizes texts differently.
    """
    _let_sentencepiece_be_read()
    form = form_of(folder)
    try:
        original = load_tokenizer(folder)
    except UnsupportedModel as error:
        # If SentencePiece fails, transformers tries tiktoken and then reports only that tiktoken is not installed.
        is_misread = "tiktoken" in error.why and form == _FORMS[".model"]
        raise UnsupportedModel(
            f"The model's tokenizer is {form}, and cannot be converted to {TOKENIZER_FILE}.",
            why=f"It cannot be read as {form}." if is_misread else error.why,
            hint=INSTEAD,
        ) from error
    files = {TOKENIZER_FILE: original.backend_tokenizer.to_str().encode()}
    settings_path = folder / TOKENIZER_SETTINGS
    settings: dict[str, Any] = json.loads(settings_path.read_bytes()) if settings_path.is_file() else {}
    names = {name: text for name, text in original.special_tokens_map.items() if name not in settings}
    if names:  # from the file that is no longer read
        files[TOKENIZER_SETTINGS] = (json.dumps({**settings, **names}, indent=2, ensure_ascii=False) + "\n").encode()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    _check_same(original, load_tokenizer(folder), form)
    return files


def _let_sentencepiece_be_read() -> None:
    """Make transformers read SentencePiece models with any version of protobuf.

    sentencepiece's classes refuse a protobuf older than the one that generated them, and gRPC's packages require an
    older one (measured: sentencepiece 0.2.3 and protobuf 6.33). transformers has the same classes.
    """
    from google.protobuf.runtime_version import VersionError

    try:
        from sentencepiece import sentencepiece_model_pb2  # noqa: F401
    except ImportError:  # transformers reports what is missing
        return
    except VersionError:
        import sentencepiece

        quieten_transformers()
        from transformers.utils import sentencepiece_model_pb2_new

        sentencepiece.sentencepiece_model_pb2 = sentencepiece_model_pb2_new


def _check_same(original: Any, converted: Any, form: str | None) -> None:
    for text in _SAMPLES:
        for add_special_tokens in (True, False):
            both = [each.encode(text, add_special_tokens=add_special_tokens) for each in (original, converted)]
            if both[0] != both[1] or original.decode(both[0]) != converted.decode(both[0]):
                raise UnsupportedModel(
                    f"The model's tokenizer ({form}) cannot be converted to tokenizer.json.",
                    why=f"The converted tokenizer encodes {text!r} to other tokens.",
                    hint=INSTEAD,
                )
