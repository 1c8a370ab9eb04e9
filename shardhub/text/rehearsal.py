"""Tries a model's tokenizer before any weight is copied, as a head uses it: build, render a chat, encode, decode.

A tokenizer in another format is converted to the files that a head reads; see `Rehearsal.files`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardhub.errors import AccessError, FormatError, PromptError, UnsupportedModel
from shardhub.splitting.shard_folder import TEMPLATES_FOLDER
from shardhub.text.conversion import INSTEAD, convert_tokenizer, form_of
from shardhub.text.tokenizer import Tokenizer
from shardhub.text.tokenizer_files import TOKENIZER_FILE, TOKENIZER_SETTINGS

_DEFAULT_TEMPLATE_FILE = "chat_template.jinja"
_FOLDER = "shardhub-tokenizer-"
_MADE_FOLDER = re.compile(rf"\S*/{_FOLDER}\w+")
_TEXT = "Hello, world"
# A template may require the content as text or as a list of parts.
_CONTENTS: tuple[Any, ...] = ("Hello", [{"type": "text", "text": "Hello"}])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """The result of trying a model's tokenizer.

    Attributes:
        files: Files that replace or complete the model's own in the pipeline, by name.
        left_out: The model's files that the pipeline does not carry.
        notes: Remarks for the user.
    """

    files: Mapping[str, bytes]
    left_out: frozenset[str]
    notes: tuple[str, ...]


def rehearse(
    files: Mapping[str, bytes],
    *,
    where: str,
    ignore_code: bool = False,
    num_rows: int | None = None,
    is_needed: bool = True,
) -> Rehearsal:
    """Build a tokenizer from a model's small files and use it as a head does.

    Args:
        files: The small files beside the weights, by name; templates beside the default one as
            `additional_chat_templates/NAME.jinja`.
        where: The model's name, for messages.
        ignore_code: Whether to accept a tokenizer with code of its own, without that code.
        num_rows: Number of token ids for which the model has rows, if known.
        is_needed: Whether to refuse a model without a tokenizer.

    Raises:
        UnsupportedModel: Encoding, rendering or decoding fails.
        FormatError: A file is malformed.
    """
    made: dict[str, bytes] = {}
    left_out: set[str] = set()
    notes: list[str] = []
    if ignore_code:
        made |= _without_code(files, where)
    templates = {name: data for name, data in files.items() if name.startswith(f"{TEMPLATES_FOLDER}/")}
    if templates:
        made |= _folded({**files, **made}, templates, where)
        left_out = {*templates, _DEFAULT_TEMPLATE_FILE}
    with _named(where), tempfile.TemporaryDirectory(prefix=_FOLDER) as name:
        folder = Path(name)
        for file, data in {**files, **made}.items():
            if file not in left_out:
                (folder / file).write_bytes(data)
        if not (folder / TOKENIZER_FILE).is_file():
            form = form_of(folder)
            if form is None and not is_needed:
                return Rehearsal(files={}, left_out=frozenset(), notes=("it has no tokenizer, so it cannot be split",))
            if form is None:
                raise UnsupportedModel(
                    f"{where} has no tokenizer.", why="None of a tokenizer's files are present.", hint=INSTEAD
                )
            made |= convert_tokenizer(folder)
            notes.append(f"the tokenizer is {form}; it is published converted to {TOKENIZER_FILE}")
        notes += _use(folder, num_rows)
    return Rehearsal(files=made, left_out=frozenset(left_out), notes=tuple(notes))


def _use(folder: Path, num_rows: int | None) -> list[str]:
    """Encode, render and decode; return remarks for the user."""
    notes = []
    tokenizer = Tokenizer(folder)
    try:
        ids = tokenizer.encode(_TEXT)
        detokenizer = tokenizer.detokenizer()
        for token in ids or [0]:
            detokenizer.add(token)
        detokenizer.finish()
        if tokenizer.has_chat_template and (refusal := _refusal(tokenizer)) is not None:
            notes.append(f"the chat template refuses a conversation of one user message: {refusal.why or refusal.what}")
        if num_rows is not None and tokenizer.vocab_size > num_rows:
            notes.append(
                f"the tokenizer has {tokenizer.vocab_size} tokens, but the model has {num_rows} embedding rows: "
                "prompts with other tokens are refused"
            )
    finally:
        tokenizer.close()
    return notes


def _refusal(tokenizer: Tokenizer) -> PromptError | None:
    """The chat template's own refusal of a conversation of one message; None if it accepts one.

    Raises:
        UnsupportedModel: The template cannot be rendered at all.
    """
    for content in _CONTENTS:
        try:
            tokenizer.render_chat([{"role": "user", "content": content}])
        except PromptError as error:
            refused = error
        else:
            return None
    if not refused.hint:  # the template's own refusal: it may accept another conversation
        return refused
    raise UnsupportedModel(
        f"The model's chat template cannot be used: {refused.what}",
        why=refused.why,
        hint="Repair the template, or remove it (chat_template.jinja, or chat_template in tokenizer_config.json): "
        "prompts can then be sent without a template.",
    ) from refused


def _without_code(files: Mapping[str, bytes], where: str) -> dict[str, bytes]:
    """tokenizer_config.json without references to code, if it has any."""
    settings = _settings(files, where)
    if "auto_map" not in settings:
        return {}
    return _written({name: value for name, value in settings.items() if name != "auto_map"})


def _folded(files: Mapping[str, bytes], templates: Mapping[str, bytes], where: str) -> dict[str, bytes]:
    """tokenizer_config.json with the templates of a subfolder, because a pipeline has no subfolders."""
    settings = _settings(files, where)
    own = settings.get("chat_template")
    named = {each["name"]: each["template"] for each in own} if isinstance(own, list) else {"default": own}
    if _DEFAULT_TEMPLATE_FILE in files:
        named["default"] = files[_DEFAULT_TEMPLATE_FILE].decode("utf-8", "replace")
    for name, data in templates.items():
        named[name.removeprefix(f"{TEMPLATES_FOLDER}/").removesuffix(".jinja")] = data.decode("utf-8", "replace")
    settings["chat_template"] = [{"name": name, "template": text} for name, text in named.items() if text]
    return _written(settings)


def _settings(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    try:
        settings = json.loads(files.get(TOKENIZER_SETTINGS, b"{}"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}/{TOKENIZER_SETTINGS} is not JSON.", why=f"{error}.") from error
    if not isinstance(settings, dict):
        raise FormatError(f"{where}/{TOKENIZER_SETTINGS} is not a JSON object.")
    return settings


def _written(settings: Mapping[str, Any]) -> dict[str, bytes]:
    return {TOKENIZER_SETTINGS: (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()}


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Name the model in errors, instead of the temporary folder of its tokenizer."""
    try:
        yield
    except (FormatError, UnsupportedModel) as error:
        texts = [_MADE_FOLDER.sub(lambda _: where, text) for text in (error.what, error.why, error.hint)]
        hint = texts[2] or INSTEAD
        raise type(error)(texts[0], why=texts[1], hint=hint) from error
    except PromptError as error:
        what = f"The tokenizer of {where} cannot be used: {error.what}"
        raise UnsupportedModel(what, why=error.why, hint=INSTEAD) from error
    except OSError as error:
        raise AccessError(
            "No temporary folder is available for trying the model's tokenizer.",
            why=f"{error.strerror or error}: {error.filename or tempfile.gettempdir()}.",
            hint="Set TMPDIR to a folder that you can write to.",
        ) from error
