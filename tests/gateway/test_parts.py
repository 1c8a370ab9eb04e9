"""Parts of messages in all APIs as text, and the end of a prompt."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from shardhub.gateway.conversations import messages_of
from shardhub.gateway.endings import ending_of
from shardhub.gateway.parts import fields_text, read_part
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.schema import Message

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
NOTE = base64.b64encode(b"hello").decode()


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"type": "text", "text": "hello"}, "hello"),
        ({"type": "input_text", "text": "hello"}, "hello"),
        ({"type": "refusal", "refusal": "no"}, "no"),
        (PICTURE, "[an image that this model cannot see: image/png]"),
        ({"type": "input_image", "image_url": "https://example.org/a.png"}, "[an image that this model cannot see]"),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "AA=="}},
            "[an image that this model cannot see: image/jpeg]",
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
            "[an audio recording that this model cannot hear: audio/wav]",
        ),
        ({"type": "video_url", "video_url": {"url": "https://example.org/a"}}, "[a video that this model cannot see]"),
        ({"type": "document", "title": "T", "source": {"type": "text", "data": "hello"}}, "[file: T]\nhello"),
        ({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "hello"}]}}, "hello"),
        (
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}},
            "[a file that this model cannot read: application/pdf]",
        ),
        (
            {"type": "file", "file": {"filename": "a.txt", "file_data": f"data:text/plain;base64,{NOTE}"}},
            "[file: a.txt]\nhello",
        ),
        ({"type": "input_file", "filename": "a.md", "file_data": NOTE}, "[file: a.md]\nhello"),
        (
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
            "[a file that this model cannot read: a.pdf application/pdf]",
        ),
        ({"type": "input_file", "file_id": "file-1"}, "[a file that this model cannot read]"),
        ({"type": "odd", "value": 1}, '[{"type": "odd", "value": 1}]'),
    ],
)
def test_part_becomes_text(part: dict[str, Any], text: str) -> None:
    """Text stays, a file becomes its text, and unsupported content becomes a line that says so."""
    assert read_part(part).text == text


def history(*messages: dict[str, Any], strict: bool = False) -> list[str]:
    made = messages_of([Message.model_validate(message) for message in messages], strict=strict)
    return [message["content"] for message in made]


def test_image_beside_words_is_a_line() -> None:
    """In a message with text, an image is replaced with a line."""
    parts = [{"type": "text", "text": "What is this?"}, PICTURE]
    text = "What is this?\n[an image that this model cannot see: image/png]"
    assert history({"role": "user", "content": parts}) == [text]


def test_image_that_a_tool_read_is_a_line() -> None:
    """A tool result that is only an image is answered, so that the session goes on."""
    assert history({"role": "tool", "tool_call_id": "c1", "content": [PICTURE]})[0].startswith("[an image")


def test_image_alone_is_a_line() -> None:
    """A turn that is only an image is answered: the model gets a line to say that it cannot see."""
    alone = {"role": "user", "content": [PICTURE]}
    line = "[an image that this model cannot see: image/png]"
    assert history({"role": "system", "content": "Be brief."}, alone) == ["Be brief.", line]


@pytest.mark.parametrize("words", [[], [{"type": "text", "text": "What?"}]], ids=["alone", "beside words"])
def test_strict_content_refuses_each_image(words) -> None:
    """With strict content an image is refused, alone and beside text, and the error names its place."""
    with pytest.raises(Refusal, match="text only") as caught:
        history({"role": "user", "content": [*words, PICTURE]}, strict=True)
    assert (caught.value.status, caught.value.param) == (400, f"messages[0].content[{len(words)}]")


def test_text_without_a_text_is_refused() -> None:
    """A text part without text is the client's mistake."""
    with pytest.raises(Refusal, match="must have a type"):
        history({"role": "user", "content": [{"type": "text"}]})


ANSWER = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "Sure: {"}]


@pytest.mark.parametrize(
    ("continues", "prompts", "ending"),
    [
        (None, None, "turn"),
        (False, True, "turn"),
        (None, False, "history"),
        (True, None, "prefix"),
        (True, False, "prefix"),
    ],
)
def test_prompt_ends_where_it_is_asked_to(continues: bool | None, prompts: bool | None, ending: str) -> None:
    """The two fields select between a new turn, none, and continuing the last answer."""
    assert ending_of({"continue_final_message": continues, "add_generation_prompt": prompts}, ANSWER) == ending


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"continue_final_message": True, "add_generation_prompt": True}, ANSWER),
        ({"continue_final_message": True}, ANSWER[:1]),
        ({"continue_final_message": True}, [{"role": "assistant", "content": " "}]),
        ({"continue_final_message": True}, [{"role": "assistant", "content": "x", "tool_calls": [{}]}]),
    ],
)
def test_prompt_without_an_end_is_refused(fields: dict[str, bool], messages: list[dict[str, Any]]) -> None:
    """Both fields at once, and nothing to continue, are refused by name."""
    with pytest.raises(Refusal) as caught:
        ending_of(fields, messages)
    assert caught.value.param == "continue_final_message"


def test_a_value_that_nests_deeply_is_shown_as_far_as_it_is_read() -> None:
    """The error shows only the levels that are read, as each further one would need a Python stack frame."""
    nested = json.loads("[" * 900 + "]" * 900)
    assert fields_text("odd_item", {"value": nested}).count("[") < 100
    assert read_part({"type": "odd", "value": nested}).kind == "document"
