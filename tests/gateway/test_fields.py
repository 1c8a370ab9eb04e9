"""Fields of requests: forms of numbers and flags, names of ignored fields, and conversions."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from shardhub.gateway.faults import shown
from shardhub.gateway.ignored import MAX_NAMED, header_of, ignored_fields, ignored_of_messages
from shardhub.gateway.infill import find_infill
from shardhub.gateway.legacy import modern
from shardhub.gateway.masks import TokenRules
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.scalars import Flag, Real, Whole
from shardhub.gateway.turn import chat_request

HI = [{"role": "user", "content": "hi"}]
STRICT = {"strict": True}


@pytest.mark.parametrize(("sent", "meant"), [(20, 20), (20.0, 20), ("20", 20), (" 20 ", 20), ("-1", -1), ("2e1", 20)])
def test_whole_numbers_have_several_forms(sent, meant) -> None:
    """Whole numbers may be JSON floats or quoted."""
    assert TypeAdapter(Whole).validate_python(sent, **STRICT) == meant


@pytest.mark.parametrize("sent", [True, 1.5, "1.5", "many", "", "nan", "inf", "1" * 40, [], {}])
def test_flags_and_fractions_are_not_whole_numbers(sent) -> None:
    """Flags and fractions are refused as whole numbers."""
    with pytest.raises(ValidationError):
        TypeAdapter(Whole).validate_python(sent, **STRICT)


@pytest.mark.parametrize(("sent", "meant"), [(1, 1.0), ("0.5", 0.5), (".5", 0.5), ("1e-3", 0.001)])
def test_numbers_have_several_forms(sent, meant) -> None:
    """A quoted number is a number."""
    assert TypeAdapter(Real).validate_python(sent, **STRICT) == meant


@pytest.mark.parametrize(("sent", "meant"), [(True, True), (1, True), (0.0, False), ("TRUE", True), ("off", False)])
def test_flags_have_several_forms(sent, meant) -> None:
    """0, 1 and words are flags; other numbers are not."""
    assert TypeAdapter(Flag).validate_python(sent, **STRICT) is meant
    with pytest.raises(ValidationError):
        TypeAdapter(Flag).validate_python(2, **STRICT)


def test_ignored_fields_are_named_at_every_depth() -> None:
    """Null fields, and those without effect at their value, are not named."""
    body = chat_request(
        messages=HI,
        odd=1,
        nothing=None,
        user="me",
        typical_p=1.0,
        stream_options={"include_usage": True, "odd": 1},
        tools=[{"type": "function", "odd": 1, "function": {"name": "f", "strict": True}}],
        response_format={"type": "json_schema", "json_schema": {"schema": {}, "strict": True, "odd": 1}},
    )
    assert set(ignored_fields(body)) == {
        "odd",
        "stream_options.odd",
        "tools[0].odd",
        "tools[0].function.strict",
        "response_format.json_schema.odd",
    }


def test_fields_of_messages_are_ignored_where_the_template_does_not_read_them() -> None:
    """The template's reads are recognised by whatever name its loop gives a message."""
    body = chat_request(messages=[{**HI[0], "name": "bob", "odd": 1, "tool_call_id": "c"}])
    for template, names in {
        "{% for m in messages %}{{ m.content }}{% endfor %}": ["messages[0].name", "messages[0].odd"],
        "{% for m in messages %}{{ m['name'] }}{% endfor %}": ["messages[0].odd"],
        "{% for m in loop_messages %}{{ m.get('name') }}{{ tool.odd }}{% endfor %}": ["messages[0].odd"],
        "{{ messages[0].name }}{{ messages[-1]['odd'] }}": [],
        "{% for message in messages %}{% if 'name' in message %}{% endif %}{% endfor %}": ["messages[0].odd"],
    }.items():
        assert ignored_of_messages(body.messages, template) == names


def test_a_header_names_so_many_and_no_more() -> None:
    """The header has a bounded number of names, on one line of printable ASCII."""
    header = header_of([f"x{index}\r\n世" for index in range(10_000)])
    assert header.isascii()
    assert header.isprintable()
    assert header.count("'") == 2 * MAX_NAMED
    assert header.endswith("and more")
    assert header_of([]) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": "six"}, 'max_tokens is "six", expected a whole number.'),
        ({"max_tokens": True}, "max_tokens is true, expected a whole number."),
        ({"temperature": 500}, "temperature is 500, expected at most 100."),
        ({"stop": [1]}, "stop.0 is 1, expected a text."),
        ({"stream": "perhaps"}, 'stream is "perhaps", expected true or false.'),
        ({"messages": "hi"}, 'messages is "hi", expected a list.'),
        ({"messages": []}, "messages is a list of 0, expected 1 or more entries."),
        ({"tools": [{"type": "function"}]}, "tools.0.function is missing."),
        ({"mirostat": 2}, "mirostat is not supported: this gateway samples by"),
    ],
)
def test_a_wrong_value_is_told_as_it_was_sent(fields, message) -> None:
    """The error shows the value as it was sent and what was expected."""
    with pytest.raises(Refusal) as refused:
        chat_request(**{"messages": HI, **fields})
    assert refused.value.message.startswith(message)


def test_long_values_are_told_by_their_beginning() -> None:
    """The error shows the beginning of a long value, and only what JSON can hold."""
    assert len(shown("x" * 1000)) < 100
    assert shown([1] * 1000) == "a list of 1000"


def test_functions_become_tools() -> None:
    """`functions` become tools, with their history and one call at a time."""
    fields = {
        "functions": [{"name": "f"}],
        "function_call": {"name": "f"},
        "messages": [
            *HI,
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "1"},
        ],
    }
    body = chat_request(**fields)
    assert body.tools[0].function.name == "f"
    assert body.parallel_tool_calls is False
    call, result = body.messages[1].tool_calls[0], body.messages[2].model_dump()
    assert (result["role"], result["tool_call_id"]) == ("tool", call["id"])
    with pytest.raises(Refusal):
        modern({"functions": [{"name": "f"}], "tools": [{}]})
    assert modern({"messages": ["odd", 1]}) == {"messages": ["odd", 1]}


def test_rules_mask_tokens_one_by_one() -> None:
    """Ids, early ends and words of several tokens are forbidden; never all tokens."""
    rules = TokenRules(num_ids=10, allowed=0b11_1111_1110, ends=0b10, min_tokens=1, bad=((3,), (4, 5)))
    grammar = rules.around(None)

    def allowed() -> list[int]:
        bits = int.from_bytes(grammar.mask(), "little")
        return [token for token in range(16) if bits >> token & 1]

    assert allowed() == [2, 4, 5, 6, 7, 8, 9]
    grammar.accept(4)
    assert allowed() == [1, 2, 4, 6, 7, 8, 9]
    grammar.accept(2)
    assert allowed() == [1, 2, 4, 5, 6, 7, 8, 9]
    only_end = TokenRules(num_ids=10, allowed=0b10, ends=0b10, min_tokens=5, bad=()).around(None)
    assert only_end.mask() == b"\x02\x00"


class Vocabulary:
    """A tokenizer that knows only the names of tokens."""

    eos_ids = frozenset({0})

    def __init__(self, *names: str) -> None:
        self._names = names

    def token_id(self, name: str) -> int | None:
        return self._names.index(name) + 1 if name in self._names else None


@pytest.mark.parametrize(
    ("names", "prompt"),
    [
        (("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), [9, 1, 50, 2, 60, 3]),
        (("▁<PRE>", "▁<SUF>", "▁<MID>"), [9, 1, 50, 2, 60, 3]),
        (("[PREFIX]", "[SUFFIX]"), [9, 2, 60, 1, 50]),
        (("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"), [9, 2, 60, 1, 50, 3]),
    ],
)
def test_models_are_asked_to_fill_in_by_their_own_tokens(names, prompt) -> None:
    """Prefix and suffix are ordered as the model's card says."""
    infill = find_infill(Vocabulary(*names, "<|endoftext|>"))
    assert infill.prompt([9], [50], [60]) == prompt
    assert infill.end_ids >= {0, 1, 2, len(names) + 1}


def test_models_without_the_tokens_cannot_fill_in() -> None:
    """A model that lacks any of the tokens cannot fill in."""
    assert find_infill(Vocabulary("<|fim_prefix|>", "<|fim_suffix|>")) is None
