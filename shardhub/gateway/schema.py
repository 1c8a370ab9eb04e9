"""Request bodies. Unknown fields are ignored, with a warning header; null means the default."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from shardhub.gateway.foreign import check_foreign
from shardhub.gateway.legacy import modern
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.scalars import Flag, Real, Whole
from shardhub.parameters import MAX_LOGIT_BIAS, MAX_TOP_LOGPROBS, MIN_REPETITION_PENALTY
from shardhub.text.stops import MAX_STOP_CHARS, MAX_STOPS

# Maximum number of answers to one prompt, and of prompts in one request.
MAX_CHOICES = 8
MAX_PROMPTS = 128
MAX_MESSAGES = 4096
MAX_TOOLS = 256
# Some clients use their own roles, such as "critic"; the longest one known is "environment".
MAX_ROLE_CHARS = 64
MAX_TEXT_CHARS = 16 << 20
# OpenAI accepts 64; agents' namespaces make names longer.
MAX_NAME_CHARS = 256
# The ids are looked up for every token.
MAX_STOP_IDS = 1024
MAX_BAD_WORDS = 1024
# The largest vocabularies have 262,144 tokens.
MAX_ALLOWED_IDS = 1 << 18
_INT64 = 2**63

Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class Body(BaseModel):
    """A request's body, or a part of one."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: Flag | None = None


class StructuredOutputs(Body):
    """The structure of an answer; at most one field is set."""

    json_: dict[str, Any] | bool | str | None = Field(None, alias="json")
    json_object: Flag | None = None
    regex: str | None = None
    choice: list[str] | None = None

    @model_validator(mode="after")
    def _check_foreign(self) -> StructuredOutputs:
        check_foreign(self.model_extra, "structured_outputs.")
        return self


class Sampling(Body):
    """Sampling fields, common to all requests for an answer."""

    model: str | None = None
    stream: Flag | None = None
    temperature: Real | None = Field(None, ge=0, le=100)
    top_p: Real | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, lt=2**24)  # -1 keeps all, as 0 does
    min_p: Real | None = Field(None, ge=0, le=1)
    repetition_penalty: Real | None = Field(None, ge=MIN_REPETITION_PENALTY, le=100)
    presence_penalty: Real | None = Field(None, ge=-2, le=2)
    frequency_penalty: Real | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Real] | None = Field(None, max_length=MAX_LOGIT_BIAS)
    seed: Whole | None = Field(None, ge=-_INT64, lt=_INT64)
    repeat_penalty: Real | None = Field(None, ge=MIN_REPETITION_PENALTY, le=100)  # llama.cpp's name
    repetition_context_size: Whole | None = Field(None, ge=0, lt=2**24)
    repeat_last_n: Whole | None = Field(None, ge=-1, lt=2**24)  # llama.cpp's name; -1 is all
    stop: Stop | Annotated[list[Stop | None], Field(max_length=MAX_STOPS)] | None = None
    ignore_eos: Flag | None = None
    min_tokens: Whole | None = Field(None, ge=0, lt=2**31)
    stop_token_ids: list[Whole] | None = Field(None, max_length=MAX_STOP_IDS)
    bad_words: list[str] | None = Field(None, max_length=MAX_BAD_WORDS)
    allowed_token_ids: list[Whole] | None = Field(None, max_length=MAX_ALLOWED_IDS)
    include_stop_str_in_output: Flag | None = None
    truncate_prompt_tokens: Whole | None = Field(None, ge=-1, lt=2**31)
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    json_schema: dict[str, Any] | bool | str | None = None  # llama.cpp's name, and SGLang's
    regex: str | None = None  # SGLang's name
    structured_outputs: StructuredOutputs | None = None
    # Bookkeeping, without effect on the answer.
    skip_special_tokens: Any = None  # special tokens are shown, except those that end an answer
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @model_validator(mode="after")
    def _check_foreign(self) -> Sampling:
        check_foreign(self.model_extra)
        return self


class Generation(Sampling):
    """Fields common to chat and completion requests."""

    stream_options: StreamOptions | None = None
    n: Whole | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: Whole | None = Field(None, ge=-1, lt=2**31)
    n_predict: Whole | None = Field(None, ge=-2, lt=2**31)  # llama.cpp's name; below 0 is no limit

    @property
    def asked_tokens(self) -> int | None:
        """Maximum number of tokens of an answer, under either name; None without a limit."""
        if self.max_tokens is not None or self.n_predict is None:
            return self.max_tokens
        return None if self.n_predict < 0 else self.n_predict

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in texts if text is not None]


class Message(Body):
    """One message of a conversation."""

    role: str = Field(min_length=1, max_length=MAX_ROLE_CHARS)
    content: str | list[str | dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Function(Body):
    """A function that the model may call."""

    # Agents put namespaces into names: mcp__files__read, browser/open.
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    description: str | None = None
    parameters: dict[str, Any] | None = None

    @field_validator("parameters", mode="before")
    @classmethod
    def _read_parameters(cls, parameters: Any) -> Any:
        """Accept a schema written as text, and an empty text or list for no parameters."""
        if isinstance(parameters, str) and parameters.strip():
            try:
                return json.loads(parameters)
            except (ValueError, RecursionError):
                return parameters
        return None if parameters in ("", [], True) else parameters


class Tool(Body):
    """A tool: a function, or a custom tool, which becomes a function of one text."""

    type: Literal["function"] = "function"
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _read_forms(cls, tool: Any) -> Any:
        if not isinstance(tool, dict) or "function" in tool:
            return tool
        if tool.get("type", "function") == "function" and "name" in tool:
            fields = ("name", "description", "parameters", "strict")
            return {"type": "function", "function": {name: tool[name] for name in fields if name in tool}}
        custom = tool.get("custom")
        if tool.get("type") == "custom" and isinstance(custom, dict):
            parameters = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
            named = {name: custom[name] for name in ("name", "description") if name in custom}
            return {"type": "function", "function": {**named, "parameters": parameters}}
        return tool


class JsonSchema(Body):
    """A JSON schema and its name."""

    name: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: Any = None  # schemas are always enforced


class ResponseFormat(Body):
    """The format of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    # Directly beside the type, as in llama.cpp, Together and the Responses API.
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    name: str | None = None
    strict: Any = None


class ChatRequest(Generation):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Whole | None = Field(None, ge=-1, lt=2**31)
    logprobs: Flag | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: Flag | None = None
    continue_final_message: Flag | None = None
    reasoning_effort: str | None = Field(None, max_length=32)
    # Other servers' fields for reasoning, which `wishes` reads.
    thinking: Any = None
    think: Any = None
    enable_thinking: Flag | None = None
    reasoning: Any = None
    include_reasoning: Flag | None = None
    parallel_tool_calls: Any = None
    modalities: Any = None
    documents: list[dict[str, Any]] | None = None
    functions: Any = None  # the old form of tools
    function_call: Any = None

    @model_validator(mode="before")
    @classmethod
    def _modern(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        fields = modern(fields)
        switches = fields.get("chat_template_kwargs")
        if isinstance(switches, dict) and switches.get("documents") and not fields.get("documents"):
            # vLLM's clients send documents in either place.
            fields["documents"] = switches["documents"]
            fields["chat_template_kwargs"] = {name: value for name, value in switches.items() if name != "documents"}
        return fields

    @model_validator(mode="after")
    def _check_modalities(self) -> ChatRequest:
        if self.modalities not in (None, [], ["text"]):
            raise Refusal(400, "modalities can only be text.", param="modalities", code="unsupported_value")
        return self


class CompletionRequest(Generation):
    """POST /v1/completions."""

    prompt: str | list[str] | list[Whole] | list[list[Whole]]
    echo: Flag | None = None
    logprobs: Whole | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: Whole | None = Field(None, ge=1, le=MAX_CHOICES)
    suffix: str | None = None


class TokenizeRequest(Body):
    """POST /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = Field(None, max_length=MAX_TEXT_CHARS)
    messages: list[Message] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    add_special_tokens: Flag | None = None
    add_generation_prompt: Flag | None = None
    continue_final_message: Flag | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: Flag | None = None


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Whole] = Field(max_length=MAX_TEXT_CHARS)


class ErrorObject(BaseModel):
    """An error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of a refusal or a failure."""

    error: ErrorObject


class OllamaErrorBody(BaseModel):
    """The body of a refusal or a failure in Ollama's API."""

    error: str
