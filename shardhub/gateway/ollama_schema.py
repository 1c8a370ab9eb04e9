"""Request bodies of Ollama's API.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md, and api/types.go beside it.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from shardhub.gateway.foreign import refused_for
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.scalars import Flag, Real, Whole
from shardhub.gateway.schema import MAX_MESSAGES, MAX_TOOLS, Body
from shardhub.parameters import MAX_TOP_LOGPROBS


class Options(Body):
    """Sampling options."""

    num_predict: Whole | None = Field(None, lt=2**31)  # 0 or less: no limit
    num_ctx: Whole | None = None
    temperature: Real | None = None
    top_k: Whole | None = None
    top_p: Real | None = None
    min_p: Real | None = None
    seed: Whole | None = None
    stop: str | list[str | None] | None = None
    repeat_penalty: Real | None = None
    repeat_last_n: Whole | None = None
    presence_penalty: Real | None = None
    frequency_penalty: Real | None = None

    def sampling(self) -> dict[str, Any]:
        """The options as fields of a chat request."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        fields = {name: getattr(self, name) for name in Options.model_fields if name not in ("num_predict", "num_ctx")}
        limit = self.num_predict if self.num_predict is not None and self.num_predict > 0 else None
        return fields | {"stop": [stop for stop in stops if stop] or None, "max_tokens": limit}

    def ignored(self, max_context: int) -> list[str]:
        """Names of unsupported options that would change the answer. Ollama itself ignores some options, too.

        Args:
            max_context: The positions of the context; a `num_ctx` up to it has no effect and is not listed.
        """
        names = [name for name, value in (self.model_extra or {}).items() if refused_for(name, value) is not None]
        if self.num_ctx is not None and self.num_ctx > max_context:
            names.append("num_ctx")
        return [f"options.{name}" for name in names]


class OllamaRequest(Body):
    """Fields common to requests for a chat and for a text."""

    model: str = Field(min_length=1, max_length=1024)
    stream: Flag | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | str | None = None
    logprobs: Flag | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    # Ignored: a request cannot decide when the model is unloaded.
    keep_alive: Any = None

    @property
    def is_streamed(self) -> bool:
        """Whether the answer is streamed in lines, which is the default."""
        return self.stream is not False

    @model_validator(mode="after")
    def _check(self) -> OllamaRequest:
        if isinstance(self.think, str) and self.think not in ("low", "medium", "high", "max", ""):
            raise Refusal(400, f"think is {self.think[:40]!r}, expected a flag, low, medium or high.", param="think")
        if isinstance(self.format, str) and self.format not in ("", "json"):
            raise Refusal(400, f"format is {self.format[:40]!r}, expected json or a schema.", param="format")
        return self


class OllamaFunction(Body):
    """A function that was called."""

    name: str
    arguments: dict[str, Any] | str | None = None
    index: Any = None


class OllamaCall(Body):
    """A call of an earlier answer."""

    id: str | None = None
    type: Any = None
    function: OllamaFunction


class OllamaMessage(Body):
    """One message of a conversation."""

    role: str = Field(max_length=64)
    content: str | list[Any] | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None
    name: str | None = None
    tool_call_id: str | None = None


class OllamaChat(OllamaRequest):
    """POST /api/chat."""

    messages: list[OllamaMessage] | None = Field(None, max_length=MAX_MESSAGES)
    tools: list[dict[str, Any]] | None = Field(None, max_length=MAX_TOOLS)


class OllamaGenerate(OllamaRequest):
    """POST /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    images: list[Any] | None = None
    system: str | None = None
    template: str | None = None
    raw: Flag | None = None
    context: list[Whole] | None = None

    @model_validator(mode="after")
    def _check_template(self) -> OllamaGenerate:
        if self.template:
            raise Refusal(400, "Templates sent by clients are never run: leave out template, or use raw.")
        return self


class OllamaName(Body):
    """A request about a model, which may name it in either of two fields."""

    model: str | None = None
    name: str | None = None
    source: str | None = None
    destination: str | None = None
    verbose: Any = None
    insecure: Any = None
    stream: Flag | None = None

    @property
    def model_name(self) -> str:
        """The model's name."""
        return self.model or self.name or self.source or ""
