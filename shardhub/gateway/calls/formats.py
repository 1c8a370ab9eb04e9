"""The tags around calls, by model family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format that separates calls from text.

    Attributes:
        opening: The tag before the calls.
        closings: Tags any of which ends the calls. If there are none, the calls end with their last value.
        keeps_opening: Whether the opening tag is part of the first call, and the closing tag as well.
        marks: Other texts in a template that show that the model was trained on the format.
    """

    opening: str
    closings: tuple[str, ...] = ()
    keeps_opening: bool = False
    marks: tuple[str, ...] = field(default=())


def _between(opening: str, *closings: str, marks: tuple[str, ...] = ()) -> Format:
    return Format(opening=opening, closings=closings, marks=marks)


_COMMAND_R = ("```",)

# Source: the parsers of mlx_lm/tool_parsers and vllm/tool_parsers, and the templates of the models named. No opening is
# a prefix of another one.
FORMATS = (
    _between("<tool_call>", "</tool_call>"),  # Hermes, Qwen, GLM, Granite 4, Ernie, Nemotron 3, Exaone and many others
    _between("<tool_calls>", "</tool_calls>"),  # Jamba, Hunyuan, MiniMax M1
    _between("<tools_call>", "</tools_call>"),
    _between("<tool_calls:opensource>", "</tool_calls:opensource>", marks=("'<tool_calls{}>'",)),  # Hunyuan 3
    _between("<TOOLCALL>", "</TOOLCALL>"),  # Nemotron Nano
    _between("<function_call>", "</function_call>"),  # Granite 20B
    _between("<function_calls>", "</function_calls>"),  # OLMo 3
    _between("<|tool_call|>", "<|/tool_call|>"),  # Phi 4 mini, Granite 3
    _between("<|tool_calls|>", "<|/tool_calls|>"),
    _between("<|tool_call:begin|>", "<|tool_call:end|>"),  # Solar
    _between("<|function_call|>"),  # GigaChat 3.1
    _between("function call<|role_sep|>", marks=("'function call'",)),  # GigaChat 3
    _between("functools", marks=("functools[",)),  # Phi 4 mini, FireFunction
    _between("[TOOL_CALLS]"),  # Mistral
    _between("[TOOL_REQUEST]", "[END_TOOL_REQUEST]"),  # LM Studio, for models without a format
    _between("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),  # DeepSeek V3, R1, V3.1
    _between("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
    _between("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>"),  # Step 3
    _between("<｜tool_call_begin｜>", "<｜tool_call_end｜>"),
    _between("<｜tool calls begin｜>", "<｜tool calls end｜>", marks=("<｜tool▁calls▁begin｜>",)),  # R1 distilled
    _between("<｜tool call begin｜>", "<｜tool call end｜>", marks=("<｜tool▁calls▁begin｜>",)),
    _between("<｜DSML｜function_calls>", "</｜DSML｜function_calls>", marks=("｜DSML｜",)),  # DeepSeek V3.2
    _between("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", marks=("｜DSML｜",)),  # DeepSeek V4
    _between("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),  # Kimi K2
    _between("<|tool_call_section_begin|>", "<|tool_call_section_end|>"),
    _between("<|tool_call_begin|>", "<|tool_call_end|>"),
    _between("<|open|>tools<|sep|>", "<|close|>tools<|sep|>", marks=("<|open|>",)),  # Kimi K3
    _between("<minimax:tool_call>", "</minimax:tool_call>"),  # MiniMax M2
    _between("<seed:tool_call>", "</seed:tool_call>"),  # Seed OSS
    _between("<longcat_tool_call>", "</longcat_tool_call>"),
    _between("<atem:function_calls>", "</atem:function_calls>"),  # Muse Spark
    _between("<|START_ACTION|>", "<|END_ACTION|>"),  # Command R7B, Command A
    _between("Action:\n```json", *_COMMAND_R),  # Command R
    _between("Action: ```json", *_COMMAND_R),
    _between("Action:```json", *_COMMAND_R),
    _between("<start_function_call>", "<end_function_call>"),  # FunctionGemma
    _between("<|tool_call>", "<tool_call|>"),  # Gemma 4
    _between("<|tool_call_start|>", "<|tool_call_end|>", marks=("<|tool_list_start|>",)),  # LFM 2
    _between("<|tool_list_start|>", "<|tool_list_end|>"),
    _between("<|python_start|>", "<|python_end|>"),  # Llama 4
    _between("<|python_tag|>"),  # Llama 3
    _between("<|action_start|><|plugin|>", "<|action_end|>"),  # InternLM
    _between("<|action_start|> <|plugin|>", "<|action_end|>"),
    _between("<|tools_prefix|>", "<|tools_suffix|>"),  # Apertus
    Format(opening="<function=", closings=("</function>",), keeps_opening=True),  # Qwen3-Coder without its tag, Llama
    Format(opening="<function name=", closings=("</function>",), keeps_opening=True),  # MiniCPM
    Format(opening="<invoke name=", closings=("</invoke>",), keeps_opening=True),  # MiniMax M2 without its tag
    Format(  # DeepSeek V3.2 and V4 without their tags
        opening="<｜DSML｜invoke name=", closings=("</｜DSML｜invoke>",), keeps_opening=True, marks=("｜DSML｜",)
    ),
)


def own_formats(template: str, knows: Callable[[str], bool]) -> frozenset[str]:
    """Openings of the formats that a model was trained on: those in its template or its vocabulary.

    Args:
        template: The model's chat templates; empty if it has none.
        knows: Tells whether a text is one token of the vocabulary.
    """
    own = set()
    for each in FORMATS:
        in_template = any(mark in template for mark in (each.opening, *each.marks))
        if in_template or (each.opening[0] in "<[" and knows(each.opening)):
            own.add(each.opening)
    # A template may write the line break as the two characters \n.
    if "Action:" in template and "tool_name" in template:
        own |= {each.opening for each in FORMATS if each.opening.startswith("Action:")}
    if "<function=" in own or "<tool_call>" in own:
        own |= {"<function=", "<tool_call>"}  # models omit either tag
    return frozenset(own)
