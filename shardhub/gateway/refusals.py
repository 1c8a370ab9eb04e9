"""What a client is told when it gets no answer: the error object OpenAI's clients read, with the right status."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.responses import JSONResponse

from shardhub.errors import ContextExceeded, Overloaded, ShardhubError, outcome

# When a client that was refused for now should ask again.
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
}


class Refusal(Exception):
    """A request that is not served.

    Args:
        status: HTTP status.
        message: For people.
        param: The field that is wrong.
        code: For programs.
        headers: More headers.
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

    def body(self) -> dict[str, dict[str, str | None]]:
        """The error object."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def refusal_of(error: ShardhubError, *, param: str | None = None) -> Refusal:
    """What a client is told of an error of ours: no hint, which speaks to who runs the gateway."""
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
