"""An answer divided at the tags of its reasoning."""

from __future__ import annotations

import json
from itertools import groupby

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shardhub.gateway.reasoning import Reasoning, find_reasoning
from shardhub.gateway.tags import TagSegmenter
from shardhub.text.tokenizer import Tokenizer
from tests import tiny

THINK = Reasoning(starts=("<think>",), ends=("</think>",))
CALLS = (("<tool_call>", "</tool_call>"),)
pieces = st.lists(
    st.sampled_from(["<th", "ink>", "</th", "<think>", "</think>", "a", " ", "\n", "`", "```", "<tool_call>", "世"]),
    max_size=30,
)


def cut(*texts: str, is_whole: bool = True, reasoning: Reasoning = THINK, **options) -> list[tuple[str, str]]:
    """The segments of an answer that arrives in pieces, neighbours of one kind joined."""
    segmenter = TagSegmenter(reasoning, **options)
    segments = [segment for text in texts for segment in segmenter.feed(text)] + segmenter.finish(is_whole=is_whole)
    assert "".join(segment.text for segment in segments) == "".join(texts)
    shown = [(segment.kind, segment.text) for segment in segments if segment.kind != "markup" and not segment.hidden]
    return [(kind, "".join(text for _, text in run)) for kind, run in groupby(shown, key=lambda each: each[0])]


@example(["a", " ", "</think>", " "], False, False)
@given(pieces, st.booleans(), st.booleans())
def test_pieces_do_not_matter(texts, inside, is_whole) -> None:
    """However an answer is cut into pieces, its segments are those of the whole, and hold all of it."""
    options = {"inside": inside, "is_whole": is_whole, "calls": CALLS}
    assert cut(*texts, **options) == cut("".join(texts), **options)


@pytest.mark.parametrize(
    ("answer", "segments"),
    [
        ("<think>\nhm\n</think>\n\n42", [("reasoning", "hm\n"), ("text", "42")]),
        ("\n<think>hm</think>42", [("reasoning", "hm"), ("text", "42")]),
        ("<think>a</think>b\n<think>c", [("reasoning", "a"), ("text", "b\n"), ("reasoning", "c")]),
        ("Write `<think>` and `</think>`.", [("text", "Write `<think>` and `</think>`.")]),
        ("```\n<think>\n</think>\n```", [("text", "```\n<think>\n</think>\n```")]),
        ("The tag </think> ends it.", [("text", "The tag </think> ends it.")]),
        ("The pair <think></think>!", [("text", "The pair <think></think>!")]),
        ("6*7. </think>\n42", [("text", "6*7. 42")]),
        ("</think>42", [("text", "42")]),
        ("42</think>", [("text", "42")]),
        ("a <thing", [("text", "a <thing")]),
        ("42.<think>", [("text", "42.")]),
        ("42.<think>b", [("text", "42.<think>b")]),
    ],
)  # fmt: skip
def test_tags_count_where_the_model_thinks(answer, segments) -> None:
    """Tags open reasoning at the beginning of a line, are text within sentences and code, and are otherwise hidden."""
    assert cut(answer) == segments


def test_an_answer_may_begin_inside() -> None:
    """Where the prompt opened the reasoning, the first closing tag ends it."""
    assert cut("hm <think> hm</thi", "nk>\n\nyes", inside=True) == [("reasoning", "hm <think> hm"), ("text", "yes")]


@pytest.mark.parametrize("answer", ["<think>hm</think>42", "\n<think>\nhm</think>42"])
def test_an_opening_tag_after_that_of_the_prompt_is_not_shown(answer) -> None:
    """If the model repeats the opening tag that ends the prompt, the tag is hidden."""
    assert cut(answer, inside=True) == [("reasoning", "hm"), ("text", "42")]


def test_a_closing_tag_alone_marks_reasoning_if_nothing_was_sent_yet() -> None:
    """A lone closing tag marks the text before it as reasoning, if that was not sent yet; without a tag all is text."""
    assert cut("Hmm.", "</think>", "42", is_patient=True) == [("reasoning", "Hmm."), ("text", "42")]
    assert cut("Use `</think>`.", is_patient=True) == [("text", "Use `</think>`.")]
    assert cut("Answer.", "</think>", "\n", is_patient=True) == [("text", "Answer.")]
    assert cut("No tag", is_patient=True) == [("text", "No tag")]


def test_calls_within_reasoning_are_not_made() -> None:
    """Calls within reasoning that goes on are reasoning."""
    thought = "write\n<tool_call>{}</tool_call>\n"
    assert cut(thought + "but no</think>done", inside=True, calls=CALLS) == [
        ("reasoning", thought + "but no"),
        ("text", "done"),
    ]


def test_a_call_ends_a_reasoning_that_is_never_closed() -> None:
    """Models forget the closing tag before a call: the call ends the reasoning, unless the answer was cut short."""
    answer = "so\n<tool_call>{}</tool_call>"
    assert cut(answer, inside=True, calls=CALLS) == [("reasoning", "so\n"), ("text", "<tool_call>{}</tool_call>")]
    assert cut(answer, inside=True, calls=CALLS, is_whole=False) == [("reasoning", answer)]
    tags = ("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>")
    call = "".join(tags)
    assert cut(f"so {call}", inside=True, calls=(tags,)) == [("reasoning", "so "), ("text", call)]


def test_frames_of_the_answer_are_not_shown() -> None:
    """A frame is hidden only at the beginning of the answer, since its words may occur anywhere."""
    framed = Reasoning(starts=("<think>",), ends=("</think>",), frames=(("<answer>", "</answer>"),))
    assert cut("<think>hm</think>\n<answer>\n42</answer>", reasoning=framed)[1:] == [("text", "42")]
    assert cut("Use <answer> </answer>", reasoning=framed) == [("text", "Use <answer> </answer>")]


def test_no_more_is_held_back_than_a_tag_may_begin_with() -> None:
    """Text is sent as soon as it cannot become a tag."""
    segmenter = TagSegmenter(THINK)
    assert [segment.text for segment in segmenter.feed("a <thin")] == ["a "]
    assert [segment.text for segment in segmenter.feed("g")] == ["<thing"]


@pytest.mark.parametrize(
    ("opening", "is_open"),
    [
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n", True),
        ("Assistant: <think>", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|Assistant|></think>", False),
        ("<|im_start|>assistant\nThe tag <think>", False),
        ("<|im_start|>assistant\nWrite `<think>", False),
    ],
)
def test_a_prompt_opens_the_reasoning_or_not(opening, is_open) -> None:
    """The last tag of the prompt decides, unless it is part of a sentence to be continued."""
    assert THINK.is_open(opening) is is_open


@pytest.mark.parametrize(
    ("template", "start"),
    [
        ("{# <think> </think> #}", "<think>"),
        ("{{ m.content.split('</think>')[-1] }}", "<think>"),
        ("[THINK]{{ thoughts }}[/THINK]", "[THINK]"),
        ("<seed:think></seed:think>", "<seed:think>"),
        ("'Here is my thought process:' or 'Here is my response:'", "Here is my thought process:"),
        ("{# <reasoning> </reasoning> #}", "<reasoning>"),
        ("{{ m.content }}", None),
    ],
)
def test_a_family_is_known_by_its_template(tmp_path, template, start) -> None:
    """A template must name at least the closing tag; otherwise its model does not think."""
    tiny.save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny.config("llama")))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    reasoning = find_reasoning(Tokenizer(tmp_path))
    assert (reasoning and reasoning.starts[0]) == start
