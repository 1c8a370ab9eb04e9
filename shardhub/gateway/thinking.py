"""The switches of a chat template that turn thinking on and off, found by trying its variables.

The switch has a different name and different values in each template. So each variable is set in turn and the prompt is
inspected: a switch that is off closes the reasoning before the answer begins, or does not open it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardhub.errors import ShardhubError
from shardhub.gateway.reasoning import Reasoning, sources_of
from shardhub.text.tokenizer import Tokenizer

Value = bool | int | str
# From least to most. Source: vllm/entrypoints/openai/reasoning_effort.py.
LADDER = ("minimal", "low", "medium", "high", "xhigh", "max")
# For a template that accepts any word: the words that the model was trained on (gpt-oss).
_USUAL = ("low", "medium", "high")
_OFF = ("none", "off", "disabled", "disable", "no_think", "nothink", "no", "false", "never", "chat")
_ON = ("on", "enabled", "enable", "thinking", "think", "true", "auto", "adaptive")
# Words in a message by which some templates turn thinking off.
_SOFT_OFF = ("/no_think", "/nothink")
# Each variable costs a few renderings of a short prompt, once per model; templates read 4 variables about thinking.
_MAX_NAMES = 24
# Templates of 70 public models take 0.5 to 1.5 s; a deliberately slow one occupies a thread no longer than this.
_MAX_S = 10.0
_MAX_VALUES = 12
_MEANT = re.compile(r"think|reason|effort|thought")
_NEGATIVE = re.compile(r"(^|_)(no|non|not|disable|skip|without|exclude|hide|quiet)(_|think|reason)|^nothink")
_EFFORT = re.compile(r"effort|strength|level")
# Unclosed code extends to the end, so that it is scanned once and not again from each bracket.
_CODE = re.compile(r"\{[%{](.*?)(?:[%}]\}|\Z)", re.DOTALL)
_STRING = re.compile(r"'([^'\\]{0,64})'|\"([^\"\\]{0,64})\"")
# Identifiers that are not attributes, functions or names of keyword arguments.
_NAME = re.compile(r"(?<![\w.'\"])([a-z][a-z0-9_]{0,63})(?![\w(.'\"\[])")
# Names that templates use for other purposes.
_KNOWN = frozenset(
    re.split(
        r"\s+",
        "and or not is in if elif else endif for endfor set endset macro endmacro filter call do break continue "
        "true false none defined undefined string mapping sequence iterable boolean number namespace loop "
        "messages message tools tool documents add_generation_prompt bos_token eos_token pad_token unk_token",
    )
)

_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A client's wish about a model's thinking.

    Attributes:
        thinks: Whether the model is to think; None leaves it to the effort and the template.
        effort: `none` or a word of `LADDER`; any other word is passed to the template.
    """

    thinks: bool | None = None
    effort: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """The thinking switches of one template.

    Attributes:
        off, on: Variables that turn thinking off or on; None if there is no switch.
        effort_name: The variable for the effort; empty if there is none.
        efforts: The efforts that it accepts, from least to most.
        soft_off: A word in the last message that turns thinking off; empty if there is none.
    """

    off: Mapping[str, Value] | None = None
    on: Mapping[str, Value] | None = None
    effort_name: str = ""
    efforts: Sequence[str] = ()
    soft_off: str = ""
    names: frozenset[str] = field(default=frozenset())

    def variables(self, wish: Wish) -> dict[str, Value]:
        """The template variables that come closest to a wish."""
        effort = (wish.effort or "").lower()
        thinks = wish.thinks
        if thinks is None and effort:
            thinks = effort != "none" and not (effort == "minimal" and not self.efforts)
        if thinks is False:
            if self.off is not None:
                return dict(self.off)
            return {self.effort_name: self.efforts[0]} if self.efforts and not self.soft_off else {}
        variables = dict(self.on or {}) if thinks else {}
        if effort and effort != "none" and self.efforts:
            variables[self.effort_name] = _nearest(effort, self.efforts)
        return variables

    def is_off(self, wish: Wish) -> bool:
        """Whether a wish asks the model not to think."""
        return wish.thinks is False or (wish.thinks is None and (wish.effort or "").lower() == "none")


def find_thinking(tokenizer: Tokenizer, reasoning: Reasoning | None) -> Thinking:
    """Find the switches of a template by trying its variables. Values that fail to render are skipped.

    Args:
        reasoning: The tags of the model's reasoning; None if it has none.
    """
    source = sources_of(tokenizer)
    trial = _Trial(tokenizer, reasoning)
    usual = trial.prompt()
    if usual is None:
        return Thinking()
    off: dict[str, Value] | None = None
    on: dict[str, Value] | None = None
    effort_name, efforts = "", tuple[str, ...]()
    names = _names(source)
    for name in names:
        is_effort = _EFFORT.search(name) is not None
        if is_effort and not effort_name:
            efforts = _efforts(trial, name, source)
            effort_name = name if efforts else ""
        if off is None and (values := _switch(trial, name, source, usual)) is not None:
            off, on = values
    soft_off = ""
    if off is None:
        soft_off = next((word for word in _SOFT_OFF if word in source and trial.is_soft_switch(word, usual)), "")
    return Thinking(off=off, on=on, effort_name=effort_name, efforts=efforts, soft_off=soft_off, names=frozenset(names))


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A rendered prompt and the state of its reasoning: 0 closed, 1 neither opened nor closed, 2 opened."""

    ids: Sequence[int]
    openness: int


class _Trial:
    """Renders a short conversation with different variables."""

    def __init__(self, tokenizer: Tokenizer, reasoning: Reasoning | None) -> None:
        self._tokenizer = tokenizer
        self._reasoning = reasoning
        self._stop = time.monotonic() + _MAX_S

    def prompt(self, variables: Mapping[str, Any] = _NOTHING, *, text: str = "Hello") -> _Prompt | None:
        """The prompt; None if the template fails or the time is used up."""
        if time.monotonic() > self._stop:
            return None
        messages = [{"role": "user", "content": text}]
        try:
            rendered = self._tokenizer.render_chat(messages, **variables)
        except (ShardhubError, TypeError):
            return None
        openness = 1
        if self._reasoning is not None and self._reasoning.is_open(rendered.opening):
            openness = 2
        elif self._reasoning is not None and any(end in rendered.opening for end in self._reasoning.ends):
            openness = 0
        return _Prompt(rendered.ids, openness)

    def is_soft_switch(self, word: str, usual: _Prompt) -> bool:
        """Whether a word in the last message turns thinking off."""
        prompt = self.prompt(text=f"Hello {word}")
        return prompt is not None and prompt.openness < usual.openness


def _switch(
    trial: _Trial, name: str, source: str, usual: _Prompt
) -> tuple[dict[str, Value], dict[str, Value] | None] | None:
    """The values of a variable that turn thinking off and on; None if it is not a switch."""
    is_effort = _EFFORT.search(name) is not None
    values: list[Value] = [0] if "budget" in name else [] if is_effort else [False, True]
    values += _words(name, source)
    prompts = {repr(value): (value, prompt) for value in values if (prompt := trial.prompt({name: value}))}
    if not prompts or all(prompt.ids == usual.ids for _, prompt in prompts.values()):
        return None
    levels = [prompt.openness for _, prompt in prompts.values()] + [usual.openness]
    if min(levels) < max(levels):
        shut = [value for value, prompt in prompts.values() if prompt.openness == min(levels)]
        open_ = [value for value, prompt in prompts.values() if prompt.openness == max(levels)]
        if shut:
            on = _preferred(open_, (True, *_ON)) if open_ and not is_effort else None
            return {name: _preferred(shut, (False, *_OFF))}, None if on is None else {name: on}
    if not _MEANT.search(name):
        return None
    words = [value for value, prompt in prompts.values() if value in _OFF]
    if words:
        ons = [value for value, _ in prompts.values() if value in _ON]
        return {name: words[0]}, {name: ons[0]} if ons else None
    no, yes = prompts.get("False"), prompts.get("True")
    if no is None or yes is None or no[1].ids == yes[1].ids:
        return None
    negative = _NEGATIVE.search(name) is not None
    return {name: negative}, {name: not negative}


def _efforts(trial: _Trial, name: str, source: str) -> tuple[str, ...]:
    """The efforts that a variable accepts, from least to most."""
    named = set(_words(name, source))
    known = [word for word in LADDER if word in named and trial.prompt({name: word}) is not None]
    if len(known) > 1 or (known and not named.isdisjoint(_OFF)):
        return tuple(known)
    prompts = [trial.prompt({name: word}) for word in _USUAL]
    taken = [word for word, prompt in zip(_USUAL, prompts, strict=True) if prompt is not None]
    differ = len({tuple(prompt.ids) for prompt in prompts if prompt is not None}) > 1
    return tuple(taken) if differ else ()


def _nearest(effort: str, efforts: Sequence[str]) -> str:
    """The highest effort not above the requested one; the lowest if all are above it."""
    if effort in efforts or effort not in LADDER:
        return effort if effort in efforts else efforts[-1]
    below = [word for word in efforts if word in LADDER and LADDER.index(word) <= LADDER.index(effort)]
    return below[-1] if below else efforts[0]


def _preferred(values: Sequence[Value], order: Sequence[Value]) -> Value:
    for value in order:
        for each in values:
            if each is value or (isinstance(each, str) and each == value):
                return each
    return values[0]


def _names(source: str) -> list[str]:
    """The variables that a template may read, those about thinking first."""
    names: dict[str, None] = {}
    for code in _CODE.findall(source):
        for match in _NAME.finditer(_STRING.sub("''", code)):
            if match[1] not in _KNOWN:
                names.setdefault(match[1])
    likely = sorted((name for name in names if _MEANT.search(name)), key=_order)
    others = [name for name in names if not _MEANT.search(name) and re.search(_asked(name), source)]
    return [*likely, *others][:_MAX_NAMES]


def _asked(name: str) -> str:
    """A pattern of places where a template tests a variable as a flag."""
    return rf"\bif\s+(not\s+)?{name}\b|\b{name}\s+is\s+(not\s+)?(defined|true|false)\b"


def _order(name: str) -> tuple[int, str]:
    usual = ("enable_thinking", "thinking", "think", "reasoning", "thinking_mode", "reasoning_effort")
    return (usual.index(name) if name in usual else len(usual), name)


def _words(name: str, source: str) -> list[str]:
    """Words that a template compares a variable with or assigns to it."""
    return list(dict.fromkeys(_compared(name, source)))[:_MAX_VALUES]


def _compared(name: str, source: str) -> Iterator[str]:
    side = rf"\b{name}\b(?:\s*\|\s*\w+(?:\([^)]*\))?)*"
    word = r"(?:'([^'\\]{0,32})'|\"([^\"\\]{0,32})\")"
    patterns = (
        rf"{side}\s*(?:==|!=|=)\s*{word}",
        rf"{word}\s*(?:==|!=)\s*{side}",
        rf"\b{name}\s*(?:\|\s*default\(|or\b|is\s+(?:not\s+)?\w+\s+else\b)\s*{word}",
    )
    for pattern in patterns:
        for single, double in re.findall(pattern, source):
            yield single or double
    for listed in re.findall(rf"{side}\s+(?:not\s+)?in\s+[\[(]([^\])]{{0,256}})[\])]", source):
        for single, double in _STRING.findall(listed):
            yield single or double
