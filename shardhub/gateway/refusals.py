"""Error answers: a status, and the error object in the format of the client's API."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

from shardhub.errors import ContextExceeded, Overloaded, ShardhubError, outcome
from shardhub.gateway.faults import fault_of

# When a client that was refused temporarily should retry.
RETRY_AFTER_S = 2

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    501: "invalid_request_error",  # retrying is of no use
}


# Routes of Anthropic's API, whose clients expect its error format.
_ANTHROPIC = "/v1/messages"
# Routes of Ollama's API.
_OLLAMA = "/api/"
_ANTHROPIC_TYPES = {404: "not_found_error", 413: "request_too_large", 503: "overloaded_error"}


_TYPE_NAMES = {"str", "int", "float", "bool", "dict", "list", "constrained-str", "constrained-int"}


class Refusal(Exception):
    """A request that is refused.

    Args:
        status: HTTP status.
        message: The reason, for people.
        param: The invalid field.
        code: The reason, for programs.
        headers: Additional headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def renamed(self, names: Mapping[str, str]) -> Refusal:
        """The same refusal with other names of fields.

        Args:
            names: The new names, by the current ones.
        """
        param, message = self.param, self.message
        for field, name in names.items():
            if param is not None and re.match(rf"{re.escape(field)}\b", param):
                param = name + param.removeprefix(field)
                message = name + message.removeprefix(field) if message.startswith(field) else message
                break
        return Refusal(self.status, message, param=param, code=self.code, headers=self.headers)

    def body(self) -> dict[str, dict[str, str | None]]:
        """The error object."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic_body(self) -> dict[str, Any]:
        """The error object in Anthropic's format, with OpenAI's fields beside its own."""
        inner = self.body()["error"]
        kind = "api_error" if inner["type"] == "server_error" else inner["type"]
        return {"type": "error", "error": {**inner, "type": _ANTHROPIC_TYPES.get(self.status, kind)}}

    def ollama_body(self) -> dict[str, str]:
        """The error in Ollama's format: a text."""
        return {"error": self.message}

    def response(self, path: str) -> JSONResponse:
        """The complete answer, in the format that clients of the path expect."""
        if path.startswith(_OLLAMA):
            return JSONResponse(self.ollama_body(), self.status, self.headers)
        is_anthropic = path == _ANTHROPIC or path.startswith(_ANTHROPIC + "/")
        return JSONResponse(self.anthropic_body() if is_anthropic else self.body(), self.status, self.headers)


class Overflow(Refusal):
    """More tokens than the context holds, in the words that make clients shorten a conversation.

    OpenAI's clients look for the code and for "maximum context length". Claude Code shortens only at "prompt is too
    long" with both numbers.

    Args:
        num_prompt: Number of tokens of the prompt, or a lower bound.
        max_context: Maximum number of tokens of prompt and answer together.
        num_asked: Requested tokens of the answer, if these exceed the context.
        param: The field that is too long.
    """

    def __init__(self, *, num_prompt: int, max_context: int, num_asked: int = 0, param: str | None = None) -> None:
        self.num_prompt = num_prompt
        self.max_context = max_context
        self.num_asked = num_asked
        message = f"This model's maximum context length is {max_context} tokens. However, "
        if num_asked:
            message += (
                f"you requested {num_prompt + num_asked} tokens ({num_prompt} in the messages, {num_asked} in the "
            )
            message += "completion). Please reduce the length of the messages or completion."
        else:
            message += f"your messages resulted in {num_prompt} tokens. Please reduce the length of the messages."
        super().__init__(400, message, param=param, code="context_length_exceeded")

    def renamed(self, names: Mapping[str, str]) -> Refusal:
        """The same refusal with other names of fields."""
        return Overflow(
            num_prompt=self.num_prompt,
            max_context=self.max_context,
            num_asked=self.num_asked,
            param=super().renamed(names).param,
        )

    def anthropic_body(self) -> dict[str, Any]:
        """The error object in Anthropic's format and words."""
        body = super().anthropic_body()
        if self.num_asked:
            what = "input length and `max_tokens` exceed context limit"
            numbers = f"{self.num_prompt} + {self.num_asked} > {self.max_context}"
            words = f"{what}: {numbers}, decrease input length or `max_tokens` and try again"
        else:
            # At least one position is the answer's, so the first number is always the larger one.
            words = f"prompt is too long: {self.num_prompt} tokens > {self.max_context - 1} maximum"
        body["error"]["message"] = words
        return body


def refusal_of(error: ShardhubError, *, param: str | None = None) -> Refusal:
    """The refusal for one of our errors, without the hint, which is meant for the operator."""
    if isinstance(error, ContextExceeded) and error.num_tokens is not None and error.most is not None:
        return Overflow(num_prompt=error.num_tokens, max_context=error.most, param=param)
    status = outcome(error).http
    code: str | None = re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
    headers = {}
    if isinstance(error, ContextExceeded):
        code = "context_length_exceeded"
    elif isinstance(error, Overloaded):
        code = "rate_limit_exceeded"
    elif status == 400:
        code = "invalid_value"
    if status in (429, 503):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return Refusal(status, f"{error.what} {error.why}".strip(), param=param, code=code, headers=headers)


def refusal_of_fields(errors: Sequence[Any]) -> Refusal:
    """The refusal of a body that is not JSON or has an invalid field; it names the first one.

    Args:
        errors: pydantic's errors.
    """
    first: dict[str, Any] = dict(errors[0])
    place = [part for part in first.get("loc", ()) if part != "body"]
    if first.get("type") == "json_invalid":
        return Refusal(400, "The body is not JSON.", code="invalid_json")
    if first.get("type") == "model_attributes_type" and not place:
        return Refusal(400, "The body must be a JSON object, sent with Content-Type: application/json.")
    param = field = _param_of(first)
    inner = [dict(error) for error in errors if (_param_of(error) or "").startswith(f"{param}.")]
    if isinstance(first.get("input"), list) and len({_param_of(error) for error in inner}) == 1:
        first, field = inner[0], _param_of(inner[0])  # the only invalid entry of a list
    code = "missing_required_parameter" if first.get("type") == "missing" else "invalid_value"
    # For a field of several types, pydantic reports an error for each type.
    same = [dict(error) for error in errors if _param_of(error) == field]
    return Refusal(400, f"{field or 'The body'} {fault_of(same)}.", param=param, code=code)


def _param_of(error: Mapping[str, Any]) -> str | None:
    """The path of an error's field. For a field of several types, pydantic puts the type's name into the path."""
    place = [part for part in error.get("loc", ()) if part != "body"]
    names = [str(part) for part in place if not (isinstance(part, str) and ("[" in part or part in _TYPE_NAMES))]
    return ".".join(names) or None


def unreadable(status: int, message: str) -> JSONResponse:
    """The answer to data that cannot be parsed as a request."""
    return Refusal(status, message, code="invalid_request").response("")
