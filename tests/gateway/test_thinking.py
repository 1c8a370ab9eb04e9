"""Switches for thinking in chat templates, detected by rendering them."""

from __future__ import annotations

import json

import pytest

from shardhub.gateway.ignored import ignored_of_messages
from shardhub.gateway.reasoning import find_reasoning
from shardhub.gateway.schema import Message
from shardhub.gateway.thinking import Thinking, Wish, find_thinking
from shardhub.gateway.wishes import directed
from shardhub.text.tokenizer import Tokenizer
from tests import tiny

TURNS = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
OFF, ON = Wish(thinks=False), Wish(thinks=True)


@pytest.fixture
def thinking_of(tmp_path):
    """Detect the switches of a template."""
    tiny.save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny.config("llama")))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    tokenizers: list[Tokenizer] = []

    def find(template: str) -> Thinking:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
        tokenizers.append(Tokenizer(tmp_path))
        return find_thinking(tokenizers[-1], find_reasoning(tokenizers[-1]))

    yield find
    for tokenizer in tokenizers:
        tokenizer.close()


@pytest.mark.parametrize(
    ("ending", "off", "on"),
    [
        ("{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}", False, True),
        ("{% if thinking %}<think>{% else %}</think>{% endif %}", False, True),
        ("{% if quiet %}<think></think>{% endif %}", True, False),
        ("{% if mode == 'chat' %}<think></think>{% elif mode == 'deep' %}<think>{% endif %}", "chat", "deep"),
        ("{% if thinking_budget == 0 %}<think></think>{% endif %}", 0, None),
    ],
)
def test_a_switch_is_known_by_what_it_does(thinking_of, ending, off, on) -> None:
    """The value that closes the reasoning before the answer means off, whatever the switch's name."""
    thinking = thinking_of(TURNS + ending)
    assert list(thinking.variables(OFF).values()) == [off]
    assert list(thinking.variables(ON).values()) == [] if on is None else [on]
    assert list(thinking.variables(Wish(effort="none")).values()) == [off]


def test_a_switch_may_work_in_the_words_before_the_answer(thinking_of) -> None:
    """A switch that only changes text before the answer is off as its name says; one without effect is not one."""
    thinking = thinking_of("{% if not no_thinking %}Think.{% endif %}" + TURNS + "{# </think> #}")
    assert thinking.variables(OFF) == {"no_thinking": True}
    assert thinking_of("{% if keep_thinking is defined %}{% endif %}" + TURNS).variables(OFF) == {}


def test_an_effort_is_the_nearest_that_the_template_takes(thinking_of) -> None:
    """The nearest effort is used; where nothing turns thinking off, the lowest one stands for off."""
    thinking = thinking_of("{% set e = reasoning_effort or 'medium' %}Reasoning: {{ e }}" + TURNS)
    assert thinking.variables(OFF) == {"reasoning_effort": "low"}
    for effort, taken in (("minimal", "low"), ("medium", "medium"), ("xhigh", "high"), ("max", "high")):
        assert thinking.variables(Wish(effort=effort)) == {"reasoning_effort": taken}


def test_an_effort_may_be_the_switch(thinking_of) -> None:
    """A word such as `none` among a template's efforts turns thinking off."""
    thinking = thinking_of(
        "{% if reasoning_effort is defined and reasoning_effort not in ['none', 'high'] %}{{ raise_exception('no') }}"
        "{% endif %}{{ reasoning_effort }}" + TURNS
    )
    assert thinking.variables(OFF) == {"reasoning_effort": "none"}
    assert thinking.variables(Wish(effort="low")) == {"reasoning_effort": "high"}


def test_words_in_a_message_may_be_the_switch(thinking_of) -> None:
    """Words that switch thinking are added to the user's last message."""
    thinking = thinking_of(TURNS + "<think>{% if '/no_think' in messages[-1].content %}</think>{% endif %}{{ '\n' }}")
    messages = [{"role": "user", "content": "hi"}]
    assert directed(thinking, OFF, messages, {}).messages[-1]["content"] == "hi\n/no_think"
    assert directed(thinking, ON, messages, {}).messages == messages


def test_what_a_client_sets_itself_goes_before_its_wishes() -> None:
    """A template variable that the client sets takes precedence over a general parameter."""
    thinking = Thinking(off={"thinking": False}, on={"thinking": True}, names=frozenset({"thinking"}))
    assert directed(thinking, ON, [], {"thinking": False}).switches == {"thinking": False}
    assert directed(thinking, Wish(), [], {"enable_thinking": False}).switches == {"thinking": False}
    assert directed(thinking, Wish(effort="high"), [], {"tone": "dry"}).switches == {"thinking": True, "tone": "dry"}


def test_a_wish_that_no_switch_fulfils_is_reported() -> None:
    """If the template has no switch the parameter is reported as ignored, and the conversation is unchanged."""
    directions = directed(Thinking(), ON, [{"role": "user", "content": "hi"}], {"tone": "dry"})
    assert directions.switches == {"tone": "dry"}
    assert "no switch" in directions.remark
    assert directed(Thinking(), Wish(), [], {}).remark == ""


@pytest.mark.parametrize("piece", ["{%", "{{ '", "{% for x in ", "messages[", "{{ thinking | "])
def test_a_template_of_unclosed_code_holds_nobody_up(thinking_of, piece) -> None:
    """A template of 200,000 characters of unclosed blocks is checked in linear time."""
    template = piece * (200_000 // len(piece))
    assert thinking_of(template) == Thinking()
    assert ignored_of_messages([Message(role="user", content="", odd=1)], template) == ["messages[0].odd"]
