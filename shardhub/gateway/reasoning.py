"""The tags that model families put around their reasoning."""

from __future__ import annotations

from dataclasses import dataclass

from shardhub.text.tokenizer import Tokenizer

# Characters before a tag that is only mentioned.
QUOTES = ("`", "'", '"', "(", "\u201c", "\u2018", "\u00ab")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """How a family of models marks its reasoning.

    Attributes:
        starts, ends: Tags that open and close the reasoning.
        frames: Pairs of tags that some families put around the answer. They are not shown.
        tokens: A vocabulary that has all of these belongs to the family; if empty, the template must name the tags.
        is_control: The tags are never part of a text, so they count wherever they occur.
    """

    starts: tuple[str, ...]
    ends: tuple[str, ...]
    frames: tuple[tuple[str, str], ...] = ()
    tokens: tuple[str, ...] = ()
    is_control: bool = False

    def is_open(self, opening: str) -> bool:
        """Whether an answer begins inside the reasoning.

        Args:
            opening: The text that the template wrote after the last message, followed by the beginning of the answer
                that the model continues, if there is one.
        """
        started = max((_last_tag(opening, tag, is_control=self.is_control) for tag in self.starts), default=-1)
        return started > max((opening.rfind(tag) for tag in self.ends), default=-1)


def _pair(start: str, end: str, *, known: bool = False, control: bool = False) -> Reasoning:
    return Reasoning(starts=(start,), ends=(end,), tokens=(start, end) if known else (), is_control=control)


_COHERE = (("<|START_RESPONSE|>", "<|END_RESPONSE|>"), ("<|START_TEXT|>", "<|END_TEXT|>"))
# The first family that fits is used, so those with distinctive tags come first.
# Source: mlx_lm/tokenizer_utils.py, _infer_thinking; vllm/reasoning; the templates of the models named.
_FAMILIES = (
    # Kimi K3. Source of the frames: mlx_lm/tokenizer_utils.py, _infer_structural_markers.
    Reasoning(
        starts=("<|open|>think<|sep|>",),
        ends=("<|close|>think<|sep|>",),
        frames=(("<|open|>response<|sep|>", "<|close|>response<|sep|>"), ("", "<|close|>message<|sep|>")),
        tokens=("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
        is_control=True,
    ),
    # Gemma 4.
    Reasoning(
        starts=("<|channel>thought",), ends=("<channel|>",), tokens=("<|channel>", "<channel|>"), is_control=True
    ),
    # Command A.
    Reasoning(
        starts=("<|START_THINKING|>",),
        ends=("<|END_THINKING|>",),
        frames=_COHERE,
        tokens=("<|START_THINKING|>", "<|END_THINKING|>"),
        is_control=True,
    ),
    # OpenThinker and Sky-T1.
    Reasoning(
        starts=("<|begin_of_thought|>",),
        ends=("<|end_of_thought|>",),
        frames=(("<|begin_of_solution|>", "<|end_of_solution|>"),),
        is_control=True,
    ),
    _pair("<|think:start|>", "<|think:end|>", known=True, control=True),
    _pair("<|inner_prefix|>", "<|inner_suffix|>", known=True, control=True),  # Apertus
    _pair("<longcat_think>", "</longcat_think>", known=True),
    _pair("<seed:think>", "</seed:think>", known=True),
    _pair("<think:opensource>", "</think:opensource>", known=True),  # Hunyuan 3
    _pair("<mm:think>", "</mm:think>", known=True),  # MiniMax M3
    _pair("[THINK]", "[/THINK]", known=True),  # Magistral
    _pair("\u25c1think\u25b7", "\u25c1/think\u25b7", known=True),  # Kimi-VL
    # MedGemma.
    Reasoning(
        starts=("<unused94>thought",), ends=("<unused95>",), tokens=("<unused94>", "<unused95>"), is_control=True
    ),
    # Solar Open.
    Reasoning(
        starts=("<|think|>",),
        ends=("<|end|><|begin|>assistant",),
        frames=(("<|content|>", "<|end|>"),),
        tokens=("<|begin|>", "<|think|>", "<|content|>", "<|end|>"),
        is_control=True,
    ),
    # Apriel 1.5.
    Reasoning(
        starts=("Here are my reasoning steps:",),
        ends=("[BEGIN FINAL RESPONSE]",),
        frames=(("", "[END FINAL RESPONSE]"),),
    ),
    # Granite 3.2.
    Reasoning(
        starts=("Here is my thought process:", "Here's my thought process:"),
        ends=("Here is my response:", "Here's my response:"),
    ),
    # Most others; Granite 3.3, Ernie 4.5 and Hunyuan put a frame around the answer.
    Reasoning(
        starts=("<think>",),
        ends=("</think>",),
        frames=(("<response>", "</response>"), ("<answer>", "</answer>")),
        tokens=("<think>", "</think>"),
    ),
    _pair("<thought>", "</thought>"),  # EXAONE Deep
    _pair("<reasoning>", "</reasoning>"),
    _pair("<thinking>", "</thinking>"),
    _pair("<reason>", "</reason>"),
)


def sources_of(tokenizer: Tokenizer) -> str:
    """All chat templates of a model in one text: conversations with tools may have a template of their own."""
    templates = (tokenizer.template_source(with_tools=False), tokenizer.template_source(with_tools=True))
    return "\n".join(dict.fromkeys(template for template in templates if template))


def find_reasoning(tokenizer: Tokenizer) -> Reasoning | None:
    """The reasoning tags of a model, or None if it does not reason.

    Tags in the template take precedence over tokens in the vocabulary, which models inherit from their base models.
    """
    template = sources_of(tokenizer)
    for family in _FAMILIES:
        if any(end in template for end in family.ends) and (family.tokens or any(s in template for s in family.starts)):
            return _shown_in(family, template)
    for family in _FAMILIES:
        if family.tokens and all(map(tokenizer.knows, family.tokens)):
            return _shown_in(family, template)
    return None


def _shown_in(family: Reasoning, template: str) -> Reasoning:
    """A family with only those frames that the template names, as frames may be ordinary words."""
    frames = tuple(pair for pair in family.frames if family.is_control or pair[1] in template)
    return Reasoning(starts=family.starts, ends=family.ends, frames=frames, is_control=family.is_control)


def _last_tag(text: str, tag: str, *, is_control: bool) -> int:
    """Index of a tag's last occurrence in a text that is not inside a sentence; -1 if there is none."""
    at = text.rfind(tag)
    while at > 0 and not is_control and is_in_sentence(text[:at]):
        at = text.rfind(tag, 0, at)
    return at


def is_in_sentence(before: str) -> bool:
    """Whether a tag after this text is only mentioned: it follows a quotation mark, or a word and a blank."""
    return before.endswith(QUOTES) or (before.endswith((" ", "\t")) and before.rstrip(" \t")[-1:].isalnum())
