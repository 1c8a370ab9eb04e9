"""Answers in harmony's channels."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.gateway.channels import ChannelSegmenter, call_header

OPENING = "<|start|>assistant"
ANALYSIS = "<|channel|>analysis<|message|>Think.<|end|>"
marks = st.sampled_from(
    ["<|start|>", "assistant", "<|channel|>", "final", "<|message|>", "<|end|>", "<|", "a", " to=x"]
)


def cut(*texts: str, opening: str = OPENING, functions=("add",)) -> list[tuple[str, str, str]]:
    """Kind, function and text of each segment that is shown."""
    segmenter = ChannelSegmenter(opening, functions)
    segments = [segment for text in texts for segment in segmenter.feed(text)] + segmenter.finish(is_whole=True)
    assert "".join(segment.text for segment in segments) == "".join(texts)
    shown = [(segment.kind, segment.name, segment.text) for segment in segments if segment.kind != "markup"]
    return [(*key, "".join(each[2] for each in run)) for key, run in groupby(shown, key=lambda each: each[:2])]


@given(st.lists(marks, max_size=20))
def test_pieces_do_not_matter(texts) -> None:
    """However an answer is cut into pieces, its segments are those of the whole, and hold all of it."""
    assert cut(*texts) == cut("".join(texts))


def test_analysis_is_reasoning_and_final_is_the_answer() -> None:
    """The analysis channel is reasoning and the final channel the answer, whatever the pieces."""
    texts = [
        "<|chan",
        "nel|>analysis<|message|>Think",
        ".<|e",
        "nd|><|start|>assist",
        "ant<|channel|>final<|message|>42",
    ]
    assert cut(*texts) == [("reasoning", "", "Think."), ("text", "", "42")]


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.add <|constrain|>json<|message|>",
        " to=functions.add<|channel|>commentary <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.add<|channel|>commentary json<|message|>",
        "<|channel|>analysis to=functions.add code<|message|>",
        " to=add<|channel|>commentary<|message|>",
        "<|channel|>commentary to= functions.add<|message|>",
        "<|channel|>add<|channel|>commentary<|message|>",
    ],
)
def test_what_goes_to_a_function_is_a_call(header) -> None:
    """A message with a recipient is a call, wherever the header names it."""
    answer = f'{ANALYSIS}<|start|>assistant{header}{{"a": 1}}<|call|>'
    assert cut(answer) == [("reasoning", "", "Think."), ("call", "add", '{"a": 1}')]


def test_a_channel_may_stand_in_the_place_of_the_role() -> None:
    """A channel's name is accepted in the place of the role, where models write it in long conversations."""
    assert cut(f"{ANALYSIS}<|start|>final<|message|>42") == [("reasoning", "", "Think."), ("text", "", "42")]


def test_a_call_may_have_no_arguments() -> None:
    """A header alone makes a call without arguments."""
    assert cut("<|channel|>commentary to=functions.add<|message|>") == [("call", "add", "")]


def test_a_header_that_a_prompt_gives_begins_a_call() -> None:
    """A header at the end of the prompt begins a call, as for forced calls."""
    assert cut("{}", opening=OPENING + call_header("add")) == [("call", "add", "{}")]


def test_a_preamble_is_shown() -> None:
    """Text that precedes a call is for the user."""
    preamble = "<|channel|>commentary<|message|>I add.<|end|>"
    call = "<|start|>assistant to=functions.add<|channel|>commentary<|message|>{}"
    assert cut(preamble, call) == [("text", "", "I add."), ("call", "add", "{}")]


def test_tools_that_nobody_runs_are_thoughts() -> None:
    """Calls of OpenAI's built-in tools are reasoning, and all calls if the request has no tools."""
    python = "<|channel|>analysis to=python code<|message|>1+1<|end|>"
    call = "<|start|>assistant<|channel|>commentary to=functions.add<|message|>{}"
    assert cut(python + call, functions=None) == [("reasoning", "", "1+1{}")]


def test_the_prompt_may_have_begun_the_message() -> None:
    """A prefix in the final channel is continued as the answer, and a partial header as a header."""
    assert cut(" is 42", opening=OPENING + "<|channel|>final<|message|>It") == [("text", "", " is 42")]
    assert cut("<|message|>42", opening=OPENING + "<|channel|>final") == [("text", "", "42")]


def test_text_without_a_header_is_the_answer() -> None:
    """Text without any channel is the answer."""
    assert cut("An apple", "<|end|>") == [("text", "", "An apple")]


def test_a_header_that_was_cut_off_is_not_shown() -> None:
    """A header that was cut off is not shown."""
    assert cut(ANALYSIS + "<|start|>assistant<|chan") == [("reasoning", "", "Think.")]
