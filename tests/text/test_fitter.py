"""Fitting any history to any template: rendered with all its content, and unchanged if the template takes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from shardhub.errors import PromptError
from shardhub.text.fitter import Fitter
from shardhub.text.sandbox import Sandbox
from shardhub.text.template import ChatTemplate

END = "{% if add_generation_prompt %}<go>{% endif %}"
LOOP = "{% for m in messages %}"
SAY = "[{{ m.role }}:{{ m.content }}]"
CALLS = "{% for c in m.tool_calls or [] %}<call {{ c.function.name }} {{ c.function.arguments|tojson }}>{% endfor %}"
ALTERNATE = (
    "{% set ns = namespace(i=0) %}" + LOOP + "{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    "{% if (m.role == 'user') != (ns.i % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.i = ns.i + 1 %}{% endif %}{% endfor %}"
)
ONE_SYSTEM = "{% if m.role == 'system' and not loop.first %}{{ raise_exception('System must be first') }}{% endif %}"
# Each has the habits of a family of well-known models.
TEMPLATES = {
    "anything": LOOP + SAY + CALLS + "{% endfor %}" + END,
    "one system, first": LOOP + ONE_SYSTEM + SAY + CALLS + "{% endfor %}" + END,
    "no system": LOOP
    + "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + SAY
    + "{% endfor %}",
    "last system only": "{% set ns = namespace(s='') %}"
    + LOOP
    + "{% if m.role == 'system' %}{% set ns.s = m.content %}"
    "{% endif %}{% endfor %}{{ ns.s }}"
    + LOOP
    + "{% if m.role != 'system' %}"
    + SAY
    + CALLS
    + "{% endif %}{% endfor %}",
    "turns, no tools": ALTERNATE + LOOP + "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('role') }}"
    "{% endif %}" + SAY + "{% endfor %}" + END,
    "turns, short ids": "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"
    + ALTERNATE
    + LOOP
    + "{% if m.role == 'tool' and m.tool_call_id|length != 9 %}{{ raise_exception('ids of 9') }}{% endif %}"
    "{% if m.tool_calls %}{% if m.tool_calls[0].id|length != 9 %}{{ raise_exception('ids of 9') }}{% endif %}"
    + CALLS
    + "{% elif m.role in ['user', 'assistant', 'tool'] %}"
    + SAY
    + "{% else %}{{ raise_exception('role') }}{% endif %}{% endfor %}",
    "arguments joined": LOOP + SAY + "{% for c in m.tool_calls or [] %}{{ '<call ' + c.function.name + ' ' + "
    "c.function.arguments + '>' }}{% endfor %}{% endfor %}" + END,
    "arguments read": LOOP + SAY + "{% for c in m.tool_calls or [] %}<{{ c.function.name }}{% for k, v in "
    "c.function.arguments|items %} {{ k }}={{ v }}{% endfor %}>{% endfor %}{% endfor %}" + END,
    "one call, null": LOOP
    + "{% if m.tool_calls is defined %}{% if m.tool_calls|length != 1 %}{{ raise_exception('one') }}"
    "{% endif %}{% if m.content is none %}" + CALLS + "{% endif %}{% else %}" + SAY + "{% endif %}{% endfor %}" + END,
    "results need calls": LOOP + "{% if m.role == 'tool' and not (loop.previtem and (loop.previtem.tool_calls or "
    "loop.previtem.role == 'tool')) %}{{ raise_exception('no call') }}{% endif %}" + SAY + CALLS + "{% endfor %}" + END,
    "parts": LOOP + "{{ m.role }}{% for p in m.content %}[{{ p['text'] }}]{% endfor %}" + CALLS + "{% endfor %}" + END,
    "thoughts or text": LOOP
    + "{% if m.tool_calls and m.content and m.thinking %}{{ raise_exception('both') }}{% endif %}"
    "{{ m.thinking }}" + SAY + CALLS + "{% endfor %}" + END,
    "user last": "{% if messages[-1].role != 'user' %}{{ raise_exception('user last') }}{% endif %}"
    + LOOP
    + SAY
    + "{% endfor %}"
    + END,
    "no tag in text": LOOP + "{% if m.role == 'assistant' and '<|channel|>' in m.content %}{{ raise_exception('tag') }}"
    "{% endif %}" + SAY + CALLS + "{% endfor %}" + END,
}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def calls(*ids: str, text: str | None = None, arguments: Any = '{"q": "asked"}', **more: Any) -> dict[str, Any]:
    function = {"name": "look", "arguments": arguments}
    made = [{"id": each, "type": "function", "function": function} for each in ids]
    return says(text, tool_calls=made, **more)


def gives(call: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": text}


HISTORIES = {
    "systems": [system("s1"), system("s2"), user("u1")],
    "developers": [{"role": "developer", "content": "s1"}, {"role": "developer", "content": "s2"}, user("u1")],
    "a system only": [system("s1")],
    "a later system": [system("s1"), user("u1"), says("a1"), system("s2"), user("u2")],
    "a system last": [user("u1"), system("s1")],
    "users": [user("u1"), user("u2")],
    "answers": [user("u1"), says("a1"), says("a2"), user("u2")],
    "an answer first": [system("s1"), says("a1"), user("u1")],
    "an answer last": [user("u1"), says("a1")],
    "nothing said": [user("u1"), says(None), user("")],
    "thoughts only": [user("u1"), says("", reasoning_content="hm"), user("u2")],
    "a tool turn": [system("s1"), user("u1"), calls("c1"), gives("c1", "r1")],
    "a user after a result": [user("u1"), calls("c1"), gives("c1", "r1"), user("u2")],
    "several calls": [user("u1"), calls("c1", "c2"), gives("c2", "r2"), gives("c1", "r1"), says("a1"), user("u2")],
    "thoughts, text and a call": [user("u1"), calls("c1", reasoning_content="hm"), gives("c1", "r1")],
    "a call without a result": [user("u1"), calls("c1"), user("u2")],
    "a call last": [user("u1"), calls("c1")],
    "a result without a call": [user("u1"), gives("c9", "r9"), says("a1"), user("u2")],
    "a result first": [gives("c9", "r9")],
    "broken arguments": [user("u1"), calls("c1", arguments='{"q": "asked'), gives("c1", "r1"), user("u2")],
    "arguments of no object": [user("u1"), calls("c1", arguments='["asked"]'), gives("c1", "r1")],
    "no arguments": [user("u1"), calls("c1", arguments=""), gives("c1", "r1")],
    "no calls": [user("u1"), says("a1", tool_calls=[]), user("u2")],
    "an unknown role": [user("u1"), {"role": "critic", "content": "k1"}, user("u2")],
    "a call of no function": [user("u1"), says("a1", tool_calls=[{"id": "c1", "type": "odd"}]), user("u2")],
    "a system between call and result": [user("u1"), calls("c1"), system("s1"), gives("c1", "r1")],
    "a tag in an answer": [user("u1"), says("<|channel|>a1"), user("u2")],
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    worker = Sandbox()
    yield worker
    worker.close()


def fitter(source: str, sandbox: Sandbox) -> Fitter:
    template = ChatTemplate(source, max_output_chars=100_000)
    template._sandbox = sandbox
    return Fitter(template, {"bos_token": "<s>"})


def texts(history: list[dict[str, Any]]) -> Iterator[str]:
    for message in history:
        yield from filter(None, [message.get("content")])
        for call in message.get("tool_calls") or []:
            if "function" in call and call["function"]["arguments"]:
                yield "asked"


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_history_is_rendered_with_all_that_was_said(name: str, sandbox: Sandbox) -> None:
    """Whatever a template refuses or omits, each history has a form in which all its content is rendered."""
    under = fitter(TEMPLATES[name], sandbox)
    for what, history in HISTORIES.items():
        text = under.open(history, ending="turn").text
        assert not [said for said in texts(history) if said not in text], f"{what}: {text}"
        assert under.open(history, ending="turn").text == text


def test_what_a_template_takes_is_not_touched(sandbox: Sandbox) -> None:
    """A template that takes anything gets each history unchanged, message by message."""
    under = fitter(TEMPLATES["anything"], sandbox)
    for history in HISTORIES.values():
        if any(message["role"] == "developer" or "odd" in str(message) for message in history):
            continue
        text = under.open(history, ending="turn").text
        for message in history:
            assert f"[{message['role']}:{message.get('content') or ''}]" in text


@pytest.mark.parametrize(
    ("name", "history", "text"),
    [
        ("one system, first", "systems", "[system:s1\n\ns2][user:u1]<go>"),
        ("one system, first", "a later system", "[system:s1][user:u1][assistant:a1][user:s2\n\nu2]<go>"),
        ("one system, first", "a system last", "[user:u1\n\ns1]<go>"),
        ("no system", "systems", "[user:s1\n\ns2\n\nu1]"),
        ("no system", "a system only", "[user:s1]"),
        ("turns, no tools", "users", "[user:u1\n\nu2]<go>"),
        ("turns, no tools", "an answer first", "[user:s1][assistant:a1][user:u1]<go>"),
        ("turns, short ids", "a user after a result", '[user:u1]<call look {"q": "asked"}>[tool:r1\n\nu2]'),
        ("arguments joined", "broken arguments", '[user:u1][assistant:]<call look {"q": "asked>[tool:r1][user:u2]<go>'),
        ("arguments read", "a tool turn", "[system:s1][user:u1][assistant:]<look q=asked>[tool:r1]<go>"),
        ("one call, null", "a call last", '[user:u1]<call look {"q": "asked"}><go>'),
        ("results need calls", "a result first", "[user:<tool_result>\nr9\n</tool_result>]<go>"),
    ],
)
def test_history_takes_the_form_of_the_template(name: str, history: str, text: str, sandbox: Sandbox) -> None:
    """Content that must move goes where a reader would expect it, and nothing else moves."""
    assert fitter(TEMPLATES[name], sandbox).open(HISTORIES[history], ending="turn").text == text


def test_calls_and_results_stay_in_pairs(sandbox: Sandbox) -> None:
    """Where a message may have one call, several calls become one message each, before their results."""
    text = fitter(TEMPLATES["one call, null"], sandbox).open(HISTORIES["several calls"], ending="turn").text
    call = '<call look {"q": "asked"}>'
    assert text == f"[user:u1]{call}[tool:r1]{call}[tool:r2][assistant:a1][user:u2]<go>"


def test_short_ids_are_the_same_for_call_and_result(sandbox: Sandbox) -> None:
    """An id that is too long becomes the same nine characters wherever it occurs."""
    source = (
        LOOP + "{% for c in m.tool_calls or [] %}<{{ c.function.name }}{{ c.function.arguments|tojson }}{{ c.id }}>"
    )
    source += "{% if c.id|length != 9 %}{{ raise_exception('9') }}{% endif %}{% endfor %}{{ m.content }}"
    source += "({{ m.tool_call_id }}){% endfor %}"
    text = fitter(source, sandbox).open(HISTORIES["a tool turn"], ending="turn").text
    name = text.partition("}")[2].partition(">")[0]
    assert len(name) == 9
    assert f"r1({name})" in text


def test_template_that_always_reads_tools_gets_an_empty_list(sandbox: Sandbox) -> None:
    """A template that iterates tools without a check is rendered with an empty list."""
    source = "{% for t in tools %}{{ t.function.name }}{% endfor %}" + TEMPLATES["anything"]
    assert fitter(source, sandbox).open([user("u1")], ending="turn").text == "[user:u1]<go>"


def test_tools_get_what_a_template_reads_of_them(sandbox: Sandbox) -> None:
    """A tool without description and parameters is rendered by a template that needs both."""
    source = "{% for t in tools or [] %}{{ t.function.description + t.function.parameters.type }}{% endfor %}"
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert fitter(source, sandbox).open([user("u1")], ending="turn", tools=tools).text == "object"


def test_tools_that_a_template_leaves_out_are_told_in_words(sandbox: Sandbox) -> None:
    """Tools that the template omits are described in the system message, or where such a template has one."""
    tools = [{"type": "function", "function": {"name": "look_up", "description": "Looks.", "parameters": {}}}]
    for name in ("anything", "no system", "turns, no tools"):
        for history in ([user("u1")], [system("s1"), user("u1")]):
            text = fitter(TEMPLATES[name], sandbox).open(history, ending="turn", tools=tools).text
            assert '{"name": "look_up", "description": "Looks.", "parameters": {}}' in text
            assert text.count("<tools>\n") == 1
            assert all(message["content"] in text for message in history)
    assert "look_up" not in fitter(TEMPLATES["anything"], sandbox).open([user("u1")], ending="turn").text


def test_tools_that_a_template_writes_are_told_once(sandbox: Sandbox) -> None:
    """Tools are not described twice, also where a template writes them only beside a system message."""
    source = (
        "{% if messages[0].role == 'system' %}{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{% endif %}"
        + TEMPLATES["anything"]
    )
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    text = fitter(source, sandbox).open([system("s1"), user("u1")], ending="turn", tools=tools).text
    assert text == "look_up[system:s1][user:u1]<go>"


def test_refusal_has_the_words_of_the_template(sandbox: Sandbox) -> None:
    """If no form is accepted, the error is the template's refusal of the original history."""
    source = (
        LOOP
        + ONE_SYSTEM
        + "{% endfor %}{% if 'bad' in messages[-1].content %}{{ raise_exception('bad word') }}{% endif %}"
    )
    with pytest.raises(PromptError) as caught:
        fitter(source, sandbox).open([user("bad")], ending="turn")
    assert caught.value.why == "bad word"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_continued_answer_stays_last(name: str, sandbox: Sandbox) -> None:
    """Whatever is joined or moved, the prompt ends with the beginning of the answer."""
    for history in ([user("u1"), user("u2"), says("Sure: {")], [system("s1"), system("s2"), says("Sure: {")]):
        opened = fitter(TEMPLATES[name], sandbox).open(history, ending="prefix")
        assert opened.text.endswith("Sure: {")
        assert opened.opening.endswith("Sure: {")
        assert all(message["content"] in opened.text for message in history)
