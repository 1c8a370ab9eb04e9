"""Tool calls in the text of an answer, in every notation that models use."""

from __future__ import annotations

import importlib
import json
import pkgutil
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.gateway.calls.formats import FORMATS, own_formats
from shardhub.gateway.calls.reader import CallReader
from shardhub.gateway.calls.tools import Call, CallableTools

PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "now": {"type": "boolean"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "note": {"type": ["string", "null"]},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": PROPERTIES}}}
    for name in ("weather", "clock", "mcp__wx.read")
]
EVERY_FORMAT = frozenset(each.opening for each in FORMATS)
ROME = ("weather", {"city": "Rome"})
CLOCK = ("clock", {})
JSON_ROME = '{"name": "weather", "arguments": {"city": "Rome"}}'
JSON_CLOCK = '{"name": "clock", "arguments": {}}'
XML_ROME = "<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>"

# How families write one call, or two.
WRITTEN = {
    "Hermes": (f"<tool_call>\n{JSON_ROME}\n</tool_call>\n<tool_call>\n{JSON_CLOCK}\n</tool_call>", [ROME, CLOCK]),
    "a list": (f"<tool_call>[{JSON_ROME}, {JSON_CLOCK}]</tool_call>", [ROME, CLOCK]),
    "without closing tags": (f"<tool_call>{JSON_ROME}\n<tool_call>{JSON_CLOCK}", [ROME, CLOCK]),
    "in a fence": (f"<tool_call>\n```json\n{JSON_ROME}\n```\n</tool_call>", [ROME]),
    "a bracket too many": (f"<tool_call>{JSON_ROME}}}</tool_call>", [ROME]),
    "two brackets for one": (f"<tool_call>{{{JSON_ROME}}}</tool_call>", [ROME]),
    "arguments beside the name": ('<tool_call>{"name": "weather", "city": "Rome"}</tool_call>', [ROME]),
    "an opening tag in the place of the closing one": (f"<tool_call>{JSON_ROME}\n<tool_call>", [ROME]),
    "a bracket too few": (f"<tool_call>{JSON_ROME[:-1]}</tool_call>", [ROME]),
    "Python's words": (
        "<tool_call>{'name': 'weather', 'arguments': {'now': True, 'note': None}}</tool_call>",
        [("weather", {"now": True, "note": None})],
    ),
    "arguments as text": (
        '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}</tool_call>',
        [ROME],
    ),
    "parameters": ('<tool_call>{"name": "weather", "parameters": {"city": "Rome"}}</tool_call>', [ROME]),
    "a tag in a text": (
        '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call> \\"ō\\""}}</tool_call>',
        [("weather", {"city": '</tool_call> "ō"'})],
    ),
    "Qwen3-Coder": (
        "<tool_call>\n<function=weather>\n<parameter=days>\n5\n</parameter>\n<parameter=now>\ntrue\n</parameter>\n"
        '<parameter=tags>\n["a"]\n</parameter>\n<parameter=note>\n007\n</parameter>\n</function>\n</tool_call>',
        [("weather", {"days": 5, "now": True, "tags": ["a"], "note": "007"})],
    ),
    "text for a number": (
        "<tool_call>\n<function=weather>\n<parameter=days>\n2026-01-15\n</parameter>\n</function>\n</tool_call>",
        [("weather", {"days": "2026-01-15"})],
    ),
    "code as a value": (
        "<tool_call>\n<function=weather>\n<parameter=city>\n  if a < b:\n    '</parameter> }{'\n</parameter>\n"
        "</function>\n</tool_call>",
        [("weather", {"city": "  if a < b:\n    '</parameter> }{'"})],
    ),
    "Qwen3-Coder without its tag": (XML_ROME, [ROME]),
    "Qwen3-Coder without its first tag": (f"{XML_ROME}\n</tool_call>", [ROME]),
    "Mistral": (
        '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}[TOOL_CALLS]weather[ARGS]{"city": "Tōkyō"}',
        [ROME, ("weather", {"city": "Tōkyō"})],
    ),
    "Mistral, the tag once": ('[TOOL_CALLS]weather[ARGS]{"city": "Rome"}clock[ARGS]{}', [ROME, CLOCK]),
    "Mistral without [ARGS]": ('[TOOL_CALLS]weather{"city": "Rome"}', [ROME]),
    "Mistral Nemo": (f"[TOOL_CALLS] [{JSON_ROME}, {JSON_CLOCK}]", [ROME, CLOCK]),
    "DeepSeek V3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Rome"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        [ROME],
    ),
    "DeepSeek V3.1": (
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Rome"}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>clock<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [ROME, CLOCK],
    ),
    "DeepSeek R1, distilled": (
        "<｜tool calls begin｜><｜tool call begin｜>function<｜tool sep｜>weather\n```json\n"
        '{"city": "Rome"}\n```<｜tool call end｜><｜tool calls end｜>',
        [ROME],
    ),
    "DeepSeek V3.2 without its outer tag": (
        '<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">Rome</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>",
        [ROME],
    ),
    "DeepSeek V3.2": (
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n'
        '<｜DSML｜parameter name="city" string="true">Rome</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">5</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        [("weather", {"city": "Rome", "days": 5})],
    ),
    "Kimi K2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        '{"city": "Rome"}<|tool_call_end|><|tool_call_begin|>functions.clock:1<|tool_call_argument_begin|>'
        "{}<|tool_call_end|><|tool_calls_section_end|>",
        [ROME, CLOCK],
    ),
    "Kimi K3": (
        '<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|><|open|>argument key="city" type="string"'
        "<|sep|>Rome<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>",
        [ROME],
    ),
    "GLM 4.5": (
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>5</arg_value>\n</tool_call>\n<tool_call>clock\n</tool_call>",
        [("weather", {"city": "Rome", "days": 5}), CLOCK],
    ),
    "GLM 4.5, a tag left out": (
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome\n<arg_key>days</arg_key>\n<arg_value>5</tool_call>",
        [("weather", {"city": "Rome\n", "days": 5})],
    ),
    "LongCat": (
        "<longcat_tool_call>weather\n<longcat_arg_key>city</longcat_arg_key>\n"
        "<longcat_arg_value>Rome</longcat_arg_value>\n</longcat_tool_call>",
        [ROME],
    ),
    "MiniMax M2": (
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Rome</parameter>\n</invoke>\n'
        '<invoke name="clock">\n</invoke>\n</minimax:tool_call>',
        [ROME, CLOCK],
    ),
    "MiniMax M1": (f"<tool_calls>\n{JSON_ROME}\n{JSON_CLOCK}\n</tool_calls>", [ROME, CLOCK]),
    "Seed OSS": (f"<seed:tool_call>\n{XML_ROME}\n</seed:tool_call>", [ROME]),
    "Hunyuan": (
        "<tool_calls>\n<tool_call>weather<tool_sep>\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
        "</tool_call>\n</tool_calls>",
        [ROME],
    ),
    "Hunyuan 3": (
        "<tool_calls:opensource>\n<tool_call:opensource>weather<tool_sep:opensource>\n<arg_key:opensource>city"
        "</arg_key:opensource>\n<arg_value:opensource>Rome</arg_value:opensource>\n</tool_call:opensource>\n"
        "</tool_calls:opensource>",
        [ROME],
    ),
    "Solar": (
        '<|tool_calls|><|tool_call:begin|>abc-1<|tool_call:name|>weather<|tool_call:args|>{"city": "Rome"}'
        "<|tool_call:end|><|tool_call:begin|>abc-2<|tool_call:name|>clock<|tool_call:args|>{}<|tool_call:end|>",
        [ROME, CLOCK],
    ),
    "GigaChat 3.1": (f"<|function_call|>{JSON_ROME}", [ROME]),
    "GigaChat 3": (f"function call<|role_sep|>\n{JSON_ROME}", [ROME]),
    "Jamba": (f"<tool_calls>[{JSON_ROME}]</tool_calls>", [ROME]),
    "Command R": (
        'Action: ```json\n[\n  {"tool_name": "weather", "parameters": {"city": "Rome"}}\n]\n```',
        [ROME],
    ),
    "Command R7B": (
        '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Rome"}}]<|END_ACTION|>',
        [ROME],
    ),
    "Granite 3": (f"<|tool_call|>[{JSON_ROME}]", [ROME]),
    "Granite 20B": (f"<function_call> {JSON_ROME}<function_call> {JSON_CLOCK}", [ROME, CLOCK]),
    "Phi 4 mini": (f"<|tool_call|>[{JSON_ROME}]<|/tool_call|>", [ROME]),
    "functools": (f"functools[{JSON_ROME}]", [ROME]),
    "Gemma 3": ('```tool_code\nprint(weather(city="Rome"))\n```', [ROME]),
    "Gemma 3, JSON": ('```json\n{"name": "weather", "parameters": {"city": "Rome"}}\n```', [ROME]),
    "FunctionGemma": (
        "<start_function_call>call:weather{city:<escape>Rome, Italy<escape>,days:3}<end_function_call>",
        [("weather", {"city": "Rome, Italy", "days": 3})],
    ),
    "Gemma 4": (
        '<|tool_call>call:weather{city:<|"|>Rome<|"|>,tags:[<|"|>a<|"|>],now:true}<tool_call|>',
        [("weather", {"city": "Rome", "tags": ["a"], "now": True})],
    ),
    "LFM 2": (
        '<|tool_call_start|>[weather(city="Rome", days=3), clock()]<|tool_call_end|>',
        [("weather", {"city": "Rome", "days": 3}), CLOCK],
    ),
    "Llama 4": (
        "[weather(city='Rome', tags=['a'], now=True), clock()]",
        [("weather", {"city": "Rome", "tags": ["a"], "now": True}), CLOCK],
    ),
    "Llama 3": (
        '{"name": "weather", "parameters": {"city": "Rome"}}; {"name": "clock", "parameters": {}}',
        [ROME, CLOCK],
    ),
    "Llama 3, typed": ('{"type": "function", "name": "weather", "parameters": {"city": "Rome"}}', [ROME]),
    "Llama 3, tagged": ('<|python_tag|>{"name": "weather", "parameters": {"city": "Rome"}}', [ROME]),
    "Llama 3, its own tools": ('<|python_tag|>weather.call(city="Rome")', [ROME]),
    "Llama 3, a function's tag": ('<function=weather>{"city": "Rome"}</function>', [ROME]),
    "xLAM": (f"[{JSON_ROME}, {JSON_CLOCK}]", [ROME, CLOCK]),
    "InternLM": (
        '<|action_start|><|plugin|>\n{"name": "weather", "parameters": {"city": "Rome"}}<|action_end|>',
        [ROME],
    ),
    "Nemotron": (f"<TOOLCALL>[{JSON_ROME}]</TOOLCALL>", [ROME]),
    "Step 3": (
        "<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜>"
        '<steptml:invoke name="weather"><steptml:parameter name="city">Rome</steptml:parameter></steptml:invoke>'
        "<｜tool_call_end｜><｜tool_calls_end｜>",
        [ROME],
    ),
    "OLMo 3": ('<function_calls>\nweather(city="Rome")\nclock()\n</function_calls>', [ROME, CLOCK]),
    "Apertus": ('<|tools_prefix|>[{"weather": {"city": "Rome"}}]<|tools_suffix|>', [ROME]),
    "MiniCPM": (
        '<function name="weather"><param name="city"><![CDATA[a<b]]></param><param name="days">3</param></function>',
        [("weather", {"city": "a<b", "days": 3})],
    ),
    "Muse Spark": (
        '<atem:function_calls><atem:invoke name="weather"><atem:parameter name="city">Rome</atem:parameter>'
        "</atem:invoke></atem:function_calls>",
        [ROME],
    ),
    "llama.cpp's own": ('{"tool_call": {"name": "weather", "arguments": {"city": "Rome"}}}', [ROME]),
    "a name with dots": ('<tool_call>{"name": "mcp__wx.read", "arguments": {}}</tool_call>', [("mcp__wx.read", {})]),
}

# What looks like a call at first.
TEXTS = [
    '{"name": "Ada", "age": 3}',
    '{"name": "weather", "age": 3}',
    "[1, 2]",
    "[weather, clock]",
    "```python\nprint(1)\n```",
    '```json\n{"a": 1}\n```',
    "<tool_call>NONSENSE</tool_call>",
    "The tag <tool_call> begins a call.",
    "\n\n  text after blanks",
    "a < b, `code` and\n  {x}",
]


def read(text: str, *, cuts=(), own=EVERY_FORMAT, cut=False) -> tuple[str, list[tuple[str, object]]]:
    """The text and the calls of an answer that arrives in pieces."""
    reader = CallReader(own, CallableTools(TOOLS))
    places = [0, *sorted(cuts), len(text)]
    items = [item for start, stop in pairwise(places) for item in reader.feed(text[start:stop])]
    items += reader.finish(cut=cut)
    calls = [(item.name, json.loads(item.arguments)) for item in items if isinstance(item, Call)]
    return "".join(item for item in items if isinstance(item, str)), calls


@pytest.mark.parametrize("family", WRITTEN)
def test_a_familys_calls_are_read(family) -> None:
    """Each family's notation gives names and arguments of the types in the schema."""
    text, calls = WRITTEN[family]
    assert read(text) == ("", calls)
    assert read(f"Let me see.\n{text}") == ("Let me see.\n", calls)


@given(st.data(), st.sampled_from([*(text for text, _ in WRITTEN.values()), *TEXTS]))
def test_pieces_do_not_matter(data, text) -> None:
    """However an answer is cut into pieces, its text and its calls are those of the whole."""
    text = data.draw(st.sampled_from(["", "So.\n", "\n"])) + text + data.draw(st.sampled_from(["", "\nAnd so on."]))
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12))
    assert read(text, cuts=cuts) == read(text) == read(text, cuts=range(len(text)))


@pytest.mark.parametrize("text", TEXTS)
def test_text_without_a_call_is_unchanged(text) -> None:
    """Text that is not a call is kept unchanged."""
    assert read(text) == (text, [])


@pytest.mark.parametrize(
    "text",
    [
        '[TOOL_CALLS]weather[ARGS]{"city": "Ro',
        '<tool_call>{"name": "weather", "argum',
        "<tool_call>\n<function=w",
    ],
)
@pytest.mark.parametrize("cut", [True, False])
def test_half_a_call_is_text(text, cut) -> None:
    """A string without its end is never completed: a path that was cut short is another path."""
    assert read(text, cut=cut) == (text, [])


def test_brackets_are_added_only_where_the_model_ended() -> None:
    """Missing brackets are added only if the model ended the answer: one cut by max_tokens may have gone on."""
    text = f"<tool_call>{JSON_ROME[:-2]}"
    assert read(text) == ("", [ROME])
    assert read(text, cut=True) == (text, [])
    assert read(f"<tool_call>{JSON_ROME}", cut=True) == ("", [ROME])
    assert read(f"<tool_call>{JSON_ROME}</tool_", cut=True) == ("", [ROME])
    assert read('[TOOL_CALLS]weather[ARGS]{"city": "Rome"}clo', cut=True) == ("clo", [ROME])
    keyed = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Ro"
    assert read(keyed, cut=True) == (keyed, [])


def test_a_name_must_be_known_in_formats_of_others() -> None:
    """A model's own tags make a call of any name, which the client answers; other formats' tags need a known name."""
    text = '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>'
    assert read(text) == ("", [("nobody", {})])
    assert read(text, own=frozenset()) == (text, [])
    assert read(f"<tool_call>{JSON_ROME}</tool_call>", own=frozenset()) == ("", [ROME])


def test_blanks_around_calls_are_dropped() -> None:
    """Blanks around a call are dropped; other text stays."""
    call = f"<tool_call>{JSON_ROME}</tool_call>"
    assert read(f"\n{call}\n\n{call}\n") == ("", [ROME, ROME])
    assert read(f"{call}\nand {call}") == ("\nand ", [ROME, ROME])


def test_kimis_ids_are_kept() -> None:
    """Kimi's template writes ids in the place of names, and the ids are kept."""
    reader = CallReader(EVERY_FORMAT, CallableTools(TOOLS))
    calls = reader.feed(WRITTEN["Kimi K2"][0]) + reader.finish(cut=False)
    assert [call.id for call in calls] == ["functions.weather:0", "functions.clock:1"]


def test_no_opening_begins_with_another() -> None:
    """No opening tag begins with another one, so that a tag is certain at its last character."""
    for each in FORMATS:
        assert [other.opening for other in FORMATS if each.opening.startswith(other.opening)] == [each.opening]


def test_every_format_of_mlx_lm_is_known() -> None:
    """Every parser of the installed mlx-lm has its tags here, so that a new one is noticed."""
    from mlx_lm import tool_parsers

    names = [module.name for module in pkgutil.iter_modules(tool_parsers.__path__)]
    starts = {importlib.import_module(f"mlx_lm.tool_parsers.{name}").tool_call_start for name in names}
    assert starts <= EVERY_FORMAT


def test_a_models_formats_are_those_of_its_template_and_its_vocabulary() -> None:
    """Either template or vocabulary identifies a format, as models leave out one of two tags."""
    assert own_formats("{{ '[TOOL_CALLS]' }}", lambda token: False) == {"[TOOL_CALLS]"}
    assert own_formats("", lambda token: token == "<|tool_call_start|>") == {"<|tool_call_start|>"}
    assert own_formats("<tool_call>", lambda token: False) == {"<tool_call>", "<function="}
    assert own_formats("", lambda token: False) == frozenset()


def test_tags_without_end_take_no_time() -> None:
    """An answer of opening tags and brackets only is text, in time proportional to its length."""
    for text in ("<tool_call>{" * 5000, "<tool_call>\n" * 5000, "\n[weather(" * 5000, "```json\n{" * 5000):
        assert read(text, cuts=range(0, len(text), 7)) == (text, [])
