"""The Hub that a member brings a model up from, and how the processes of other machines reach it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from shardhub.address import ip_of
from shardhub.errors import UsageError
from shardhub.hub.reference import PUBLIC_ENDPOINT

MAX_TOKEN_CHARS = 4096
HUB_URL_PATTERN = r"^https?://[^\s\x00-\x1f]{1,2000}$"
HubUrl = Annotated[str, Field(pattern=HUB_URL_PATTERN)]
_SIGNS = r"^[\x21-\x7e]+$"
HubToken = Annotated[str, Field(pattern=_SIGNS, max_length=MAX_TOKEN_CHARS)]

_ENDPOINT, _TOKEN, _OLD_TOKEN, _NO_SAVED_TOKEN = (
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
)


def is_token(text: str) -> bool:
    """Whether a text can be a token."""
    return len(text) <= MAX_TOKEN_CHARS and re.fullmatch(_SIGNS, text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAccess:
    """A Hub, and a token for it.

    Attributes:
        endpoint: Its URL.
        token: Goes to this URL only; None if the member named none.
    """

    endpoint: str
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> HubAccess:
        """The Hub that an environment names, else the public one; a token that is saved on the machine stays there.

        Raises:
            UsageError: HF_ENDPOINT is not a URL, or HF_TOKEN cannot be a token.
        """
        endpoint, token = _endpoint_of(environment), _token_of(environment)
        if re.fullmatch(HUB_URL_PATTERN, endpoint) is None:
            raise UsageError(
                f"HF_ENDPOINT is {endpoint[:200]!r}, which is not a URL.",
                hint="Write it with http:// or https://, such as https://hub.example:8090.",
            )
        if token is not None and not is_token(token):
            raise UsageError(
                "HF_TOKEN cannot be a token.",
                why=f"A token has up to {MAX_TOKEN_CHARS} letters, digits and signs, without blanks.",
                hint="Copy it again from the Hub's settings.",
            )
        return cls(endpoint=endpoint, token=token)

    @property
    def is_on_loopback(self) -> bool:
        """Whether its URL leads every machine to itself."""
        host = urlsplit(self.endpoint).hostname or ""
        try:
            return host == "localhost" or ip_of(host).is_loopback
        except ValueError:  # a name
            return False

    def environment(self, own: Mapping[str, str]) -> dict[str, str]:
        """The environment of a process that reads from this Hub.

        Args:
            own: The machine's. If it names the same Hub, its own token goes first; another Hub's token is left out.
        """
        has_own = _token_of(own) is not None
        if _endpoint_of(own) == self.endpoint and (has_own or self.token is None):
            return dict(own)
        environment = {name: value for name, value in own.items() if name not in (_TOKEN, _OLD_TOKEN)}
        environment[_ENDPOINT] = self.endpoint
        if self.token is not None:
            environment[_TOKEN] = self.token
        else:
            environment[_NO_SAVED_TOKEN] = "1"
        return environment


def _endpoint_of(environment: Mapping[str, str]) -> str:
    return (environment.get(_ENDPOINT, "").strip() or PUBLIC_ENDPOINT).rstrip("/")


def _token_of(environment: Mapping[str, str]) -> str | None:
    """A token without the blanks and line ends that come with copying."""
    return environment.get(_TOKEN, "").strip() or environment.get(_OLD_TOKEN, "").strip() or None
