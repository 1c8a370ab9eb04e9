"""The files of a tokenizer: read within limits, checked, and loaded with transformers."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from shardhub.errors import FormatError, UnsupportedModel
from shardhub.regular_files import check_regular, read_file
from shardhub.text.panics import is_panic

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_SETTINGS = "tokenizer_config.json"
CONFIG_FILES = ("config.json", "generation_config.json")
# The largest well-known tokenizer.json (Gemma 3) has 33 MB.
MAX_TOKENIZER_BYTES = 128 * 1024**2
MAX_CONFIG_BYTES = 4 * 1024**2
# File name suffixes of tokenizers, templates and configurations.
_OPENED = frozenset({".json", ".jinja", ".model", ".txt", ".tiktoken", ".v1", ".v2", ".v3"})
# Maximum factor by which a tokenizer's successive rules may lengthen a text; known tokenizers stay below 100.
MAX_GROWTH = 1 << 16
# While one thread imports transformers, another one gets its modules without the names that are defined late:
# "cannot import name 'AutoTokenizer'" (transformers 5, two pipelines of one gateway).
_loading = threading.Lock()


def quieten_transformers() -> None:
    """Suppress transformers' notice that PyTorch is missing, which is not needed here."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def load_tokenizer(folder: Path) -> Any:
    """Load a folder's tokenizer with transformers, whose class decides details that tokenizer.json does not.

    Raises:
        FormatError: A path that should be a regular file is something else.
        UnsupportedModel: The tokenizer needs code of its own, or is not a fast one.
    """
    _check_files(folder)
    quieten_transformers()
    with _loading:
        tokenizer = _tokenizer_of(folder)
    if not tokenizer.is_fast:
        raise UnsupportedModel(
            f"The tokenizer in {folder} is not a fast tokenizer (tokenizer.json).",
            why=f"It loads as {type(tokenizer).__name__}.",
        )
    return tokenizer


def _tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, use_fast=True)
    except BaseException as error:  # the folder is untrusted, and transformers' parsing can raise anything
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise UnsupportedModel(
            f"The tokenizer in {folder} cannot be used.",
            why="A field in its files has a type that transformers does not accept."
            if isinstance(error, TypeError | AttributeError)
            else str(error).strip().split("\n")[0][:300],
            hint="Code from model folders is never run; convert the tokenizer to a fast one (tokenizer.json) first."
            if "code" in str(error)
            else "Download tokenizer.json and tokenizer_config.json again from the model's publisher.",
        ) from error


def check_template(folder: Path, template: object) -> None:
    """Check that each chat template is a text.

    Raises:
        FormatError: One is not.
    """
    texts = template.values() if isinstance(template, dict) else [] if template is None else [template]
    for text in texts:
        if not isinstance(text, str):
            raise FormatError(
                f"{folder / TOKENIZER_SETTINGS}: chat_template is not a string.",
                why=f"It is {json.dumps(text, default=str)[:80]}.",
                hint="Download the file again from the model's publisher.",
            )


def _check_files(folder: Path) -> None:
    """Check that the paths that transformers may open are regular files: it would wait for a pipe forever."""
    for path in [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]:
        if path.suffix in _OPENED and path.exists():
            try:
                check_regular(path)
            except OSError as error:
                raise FormatError(f"{path} cannot be read.", why=f"{error.strerror}.") from error


def eos_ids_of(folder: Path, own: int | None) -> frozenset[int]:
    """Ids that end an answer. generation_config.json overrides config.json. Source: mlx_lm/utils.py, load_config."""
    given: Any = None
    for name in CONFIG_FILES:
        if (folder / name).is_file():
            given = read_json(folder / name, max_bytes=MAX_CONFIG_BYTES).get("eos_token_id") or given
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(each, int) and each >= 0 for each in ids):
        raise FormatError(f"{folder}: eos_token_id is not a token id.", why=f"It is {given!r}.")
    return frozenset(ids) | (frozenset() if own is None else {own})


def read_json(path: Path, *, max_bytes: int) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        FormatError: The file is missing, too big, or holds something else.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise FormatError(f"{path} is too large.", why=f"It has {size} bytes, and at most {max_bytes} are read.")
        content = json.loads(read_file(path))
    except FileNotFoundError as error:
        raise FormatError(
            f"{path} is missing.", why="A head needs the model's tokenizer.", hint="Give the pipeline's folder."
        ) from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read.", why=f"{error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON.", why=str(error)) from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} is not a JSON object.")
    return content


def check_growth(rules: object, *, where: str) -> None:
    """Refuse rules that make a huge text of a letter, such as a rule that doubles it, applied 32 times.

    Raises:
        UnsupportedModel: The rules may lengthen a text by more than a factor of `MAX_GROWTH`.
    """
    growth, waiting = 1.0, [rules]
    while waiting:
        rule = waiting.pop()
        if not isinstance(rule, dict):
            continue
        waiting += [
            each for name in ("normalizers", "decoders") if isinstance(rule.get(name), list) for each in rule[name]
        ]
        pattern, content = rule.get("pattern"), rule.get("content")
        if rule.get("type") == "Replace" and isinstance(content, str):
            text = pattern.get("String") if isinstance(pattern, dict) else None
            # An expression may match the empty text beside each letter.
            growth *= max(1.0, len(content) / max(1, len(text)) if isinstance(text, str) else 1 + len(content))
        if growth > MAX_GROWTH:
            raise UnsupportedModel(
                f"{where} can make a text more than {MAX_GROWTH} times as long.",
                hint="Convert the tokenizer to one whose normalisation rules do not multiply each other's output.",
            )
