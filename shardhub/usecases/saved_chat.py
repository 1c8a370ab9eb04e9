"""Conversations in files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from shardhub.errors import UsageError
from shardhub.usecases.conversation import Conversation
from shardhub.whole_files import write_whole

# More text than any model's context holds.
_MAX_BYTES = 64 << 20
# Conversations are private.
_MODE = 0o600


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    role: Literal["user", "assistant"]
    content: str
    reasoning_content: str | None = None


class _SavedChat(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    system: str = ""
    messages: tuple[_Message, ...]


def save_chat(file: str, conversation: Conversation) -> Path:
    """Write a conversation to a file that only its user can read; an earlier conversation there is replaced.

    Raises:
        UsageError: The file cannot be written, or holds something else.
    """
    path = Path(file).expanduser()
    if path.exists():
        _read(path, hint="Choose another name.")
    saved = _SavedChat.model_validate({"system": conversation.system, "messages": tuple(conversation.messages)})
    try:
        write_whole(path, saved.model_dump_json(indent=1, exclude_none=True).encode() + b"\n", mode=_MODE)
    except OSError as error:
        raise UsageError(f"{path} cannot be written.", why=_why(error), hint="Choose another place.") from error
    return path


def load_chat(file: str, conversation: Conversation) -> None:
    """Continue the conversation of a file, with its system prompt.

    Raises:
        UsageError: The file cannot be read, or holds no conversation.
    """
    saved = _read(Path(file).expanduser(), hint="Name a file that /save has written.")
    conversation.system = saved.system
    conversation.restore([message.model_dump(exclude_none=True) for message in saved.messages])


def _read(path: Path, *, hint: str) -> _SavedChat:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                raise UsageError(f"{path} has more than {_MAX_BYTES} bytes.", hint=hint)
            return _SavedChat.model_validate_json(file.read(_MAX_BYTES))
    except OSError as error:
        raise UsageError(f"{path} cannot be read.", why=_why(error), hint=hint) from error
    except ValidationError as error:
        raise UsageError(
            f"{path} is not a saved conversation.", why=error.errors()[0]["msg"] + ".", hint=hint
        ) from error


def _why(error: OSError) -> str:
    return f"{error.strerror or error}."
