"""Converts parts of messages to text: an image becomes a remark, a text file its contents."""

from __future__ import annotations

import base64
import binascii
import json
import mimetypes
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

# Types of text parts in all APIs.
_TEXTS = ("text", "input_text", "output_text", "reasoning_text", "summary_text")
_IMAGES = ("image_url", "input_image", "image", "computer_screenshot")
_SOUNDS = ("input_audio", "audio_url", "audio", "output_audio")
_FILMS = ("video_url", "input_video", "video")
_FILES = ("file", "input_file", "document", "container_upload")
# Media types besides text/* whose bytes are text.
_TEXT_FILES = tuple(
    f"application/{name}"
    for name in ("json", "xml", "yaml", "x-yaml", "toml", "javascript", "x-sh", "x-ndjson", "sql", "csv", "x-httpd-php")
)
# Fields that mean nothing to a model, at any depth.
_UNSHOWN = ("cache_control", "data", "encrypted_content")
# A longer string in a part that is carried as JSON is taken for encoded binary data.
_MAX_SHOWN_CHARS = 1 << 16
# Nesting depth that is shown; parsed JSON may be a thousand levels deep.
_MAX_DEPTH = 64
_LEFT_OUT = "(left out)"
_MAX_NAME_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPart:
    """A part as text.

    Attributes:
        text: The text for the model.
        kind: Plain text, which is joined as it is; or a document or a remark on a part that the model cannot read,
            which stand on lines of their own.
    """

    text: str
    kind: Literal["text", "document", "unseen"] = "text"


def read_part(part: Any) -> ReadPart:
    """Convert a part of a message of any API.

    Raises:
        ValueError: A text part has no text, or the part has no type.
    """
    if not isinstance(part, dict):
        return ReadPart(text=part if isinstance(part, str) else json.dumps(part, ensure_ascii=False))
    kind = part.get("type")
    if (text := text_of(part)) is not None:
        return ReadPart(text=text)
    if kind in (*_TEXTS, "refusal"):
        raise ValueError("a text part without text")
    if kind in _IMAGES or (kind is None and ("image_url" in part or "image" in part)):
        return _unseen("an image", "see", _media_type(part))
    if kind in _SOUNDS:
        return _unseen("an audio recording", "hear", _media_type(part))
    if kind in _FILMS:
        return _unseen("a video", "see", _media_type(part))
    if kind in _FILES:
        return _file(part)
    if not isinstance(kind, str):
        raise ValueError("neither a type nor a text")
    return ReadPart(text=f"[{json.dumps(_cut(part), ensure_ascii=False, default=str)}]", kind="document")


def text_of(part: dict[str, Any]) -> str | None:
    """The text of a text part of any API; None for other parts."""
    kind, text, refusal = part.get("type"), part.get("text"), part.get("refusal")
    if (kind in _TEXTS or kind is None) and isinstance(text, str):
        return text
    return refusal if kind == "refusal" and isinstance(refusal, str) else None


def fields_text(kind: str, fields: Mapping[str, Any], *, without: Collection[str] = ()) -> str:
    """Write an object that chats do not know as text: its kind and its fields.

    Args:
        without: Names of fields to leave out.
    """
    shown = {name: _cut(value) for name, value in fields.items() if name not in without and value not in (None, [], {})}
    return f"[{kind}: {json.dumps(shown, ensure_ascii=False, default=str)}]" if shown else f"[{kind}]"


def joined(parts: Sequence[ReadPart]) -> str:
    """Join parts into one text, with documents and remarks on lines of their own."""
    text = ""
    apart = False
    for part in parts:
        needs_line = (apart or part.kind != "text") and text and part.text and not text.endswith("\n")
        text += ("\n" if needs_line and not part.text.startswith("\n") else "") + part.text
        apart = part.kind != "text"
    return text


def _file(part: dict[str, Any]) -> ReadPart:
    """A file part: the file's text, or a remark that it cannot be read."""
    inner = part["file"] if isinstance(part.get("file"), dict) else part
    source = part["source"] if isinstance(part.get("source"), dict) else {}
    name = next((each for each in (inner.get("filename"), part.get("title"), inner.get("name")) if each), None)
    name = str(name)[:_MAX_NAME_CHARS] if name is not None else ""
    media_type = _media_type(part) or (mimetypes.guess_type(name)[0] or "" if name else "")
    head = f"[file: {name}]\n" if name else ""
    if source.get("type") == "text" and isinstance(source.get("data"), str):
        return ReadPart(text=head + source["data"], kind="document")
    if source.get("type") == "content":
        content = source.get("content")
        pieces = [read_part(each) for each in (content if isinstance(content, list) else [content])]
        return ReadPart(text=head + joined(pieces), kind="document")
    data = next((each for each in (inner.get("file_data"), source.get("data")) if isinstance(each, str)), "")
    written = _written(data, media_type)
    if written is not None:
        return ReadPart(text=head + written, kind="document")
    return _unseen("a file", "read", " ".join(filter(None, [name, media_type])))


def _written(data: str, media_type: str) -> str | None:
    """The text of a file's bytes, or None if they are not text."""
    is_text = media_type.startswith("text/") or media_type in _TEXT_FILES or media_type.endswith(("+json", "+xml"))
    if not data or not is_text:
        return None
    if data.startswith("data:"):
        head, _, data = data.partition(",")
        if not head.endswith(";base64"):
            return data
    try:
        return base64.b64decode(data, validate=True).decode("utf-8-sig")
    except (binascii.Error, ValueError):
        return None


def _media_type(part: dict[str, Any]) -> str:
    """The media type that a part states, such as image/png; empty if it states none."""
    kind = part.get("type")
    inner = part.get(kind) if isinstance(kind, str) else None
    for each in (inner, part.get("image_url"), part.get("file"), part.get("source"), part):
        if isinstance(each, str):
            each = {"url": each}
        if not isinstance(each, dict):
            continue
        for name in ("media_type", "mime_type", "mimeType"):
            if isinstance(each.get(name), str):
                return _short(each[name])
        for name in ("url", "image_url", "file_data", "data"):
            url = each.get(name)
            if isinstance(url, str) and url.startswith("data:"):
                return _short(url[5:].partition(",")[0].partition(";")[0])
        if isinstance(each.get("format"), str):
            return _short(f"audio/{each['format']}")
    return ""


def _short(text: str) -> str:
    return "".join(char for char in text[:80] if char.isascii() and char.isprintable() and char not in "[]")


def _unseen(what: str, verb: str, detail: str) -> ReadPart:
    return ReadPart(text=f"[{what} that this model cannot {verb}{': ' + detail if detail else ''}]", kind="unseen")


def _cut(value: Any, depth: int = 0) -> Any:
    """A copy of a value without the parts that are too long, such as encoded binary data, or too deep."""
    if isinstance(value, str):
        return value if len(value) <= _MAX_SHOWN_CHARS and not value.startswith("data:") else _LEFT_OUT
    if depth > _MAX_DEPTH and isinstance(value, list | dict):
        return _LEFT_OUT
    if isinstance(value, list):
        return [_cut(each, depth + 1) for each in value]
    if isinstance(value, dict):
        return {name: _cut(each, depth + 1) for name, each in value.items() if name not in _UNSHOWN}
    return value
