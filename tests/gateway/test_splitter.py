"""Text between tags, and what a model's reasoning becomes of it."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from shardhub.gateway.reasoning import find_reasoning
from shardhub.gateway.splitter import Splitter
from shardhub.text.tokenizer import Tokenizer
from tests import tiny

pieces = st.lists(st.sampled_from(["<", "t", ">", "</", "t>", "<t>", "</t>", "a", " ", "<t", "世"]), max_size=30)


def split(texts, **options) -> list[tuple[bool, str]]:
    """Parts of a text, neighbours of one kind put together unless a tag stands between them."""
    splitter = Splitter("<t>", "</t>", **options)
    parts = [part for text in texts for part in splitter.feed(text)] + splitter.finish()
    joined: list[list] = [[options.get("inside", False), ""]]
    for part in parts:
        assert joined[-1][0] == part.inside
        joined[-1][1] += part.text
        if part.ends:
            joined.append([not part.inside, ""])
    return [(inside, text) for inside, text in joined]


@given(pieces, st.booleans())
def test_pieces_do_not_matter(texts, inside) -> None:
    """However a text is cut, its parts are those of the whole; nothing is lost, and no tag is in a part."""
    whole = "".join(texts)
    found = split(texts, inside=inside)
    assert found == split([whole], inside=inside)
    tags = [("</t>" if kind else "<t>") for kind, _ in found[:-1]]
    text = "".join(part + tag for (_, part), tag in zip(found, [*tags, ""], strict=True))
    assert text == whole
    assert all(("</t>" if kind else "<t>") not in part for kind, part in found)


@given(pieces)
def test_only_the_first_pair_counts_if_told_so(texts) -> None:
    """After the first end everything is outside, tags and all."""
    found = split(texts, once=True)
    assert [kind for kind, _ in found] in ([False], [False, True], [False, True, False])


def test_no_more_is_held_back_than_a_tag_may_begin_with() -> None:
    """Text goes on as soon as it cannot become one."""
    splitter = Splitter("<think>", "</think>")
    assert [part.text for part in splitter.feed("a <thin")] == ["a "]
    assert [part.text for part in splitter.feed("g")] == ["<thing"]


def test_reasoning_that_the_prompt_opened_goes_on(tmp_path) -> None:
    """A template may end with the opening tag; an earlier turn's reasoning has ended."""
    tiny.save_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ messages[0].content.split('</think>')[-1] }}<think>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps(tiny.config("llama")))
    tokenizer = Tokenizer(tmp_path)
    reasoning = find_reasoning(tokenizer)
    assert (reasoning.start, reasoning.end) == ("<think>", "</think>")
    for prompt, first in (("x <think>", True), ("<think>y</think> x", False), ("x", False)):
        (part,) = reasoning.splitter(tokenizer, tokenizer.encode(prompt)).feed("so")
        assert part.inside is first
