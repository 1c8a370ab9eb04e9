"""The Hub that a member brings a model up from, and how the processes of other machines reach it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from shardhub.hub.reference import PUBLIC_ENDPOINT

MAX_TOKEN_CHARS = 4096
HUB_URL_PATTERN = r"^https?://[^\s\x00-\x1f]{1,2000}$"
HubUrl = Annotated[str, Field(pattern=HUB_URL_PATTERN)]
HubToken = Annotated[str, Field(pattern=r"^[\x21-\x7e]+$", max_length=MAX_TOKEN_CHARS)]

_ENDPOINT, _TOKEN, _OLD_TOKEN, _NO_SAVED_TOKEN = (
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
)


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
        """The Hub that an environment names, else the public one; a token that is saved on the machine stays there."""
        token = environment.get(_TOKEN) or environment.get(_OLD_TOKEN) or None
        return cls(endpoint=_endpoint_of(environment), token=token)

    def environment(self, own: Mapping[str, str]) -> dict[str, str]:
        """The environment of a process that reads from this Hub.

        Args:
            own: The machine's. If it names the same Hub, its own token goes first; another Hub's token is left out.
        """
        has_own = bool(own.get(_TOKEN) or own.get(_OLD_TOKEN))
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
    return (environment.get(_ENDPOINT) or PUBLIC_ENDPOINT).rstrip("/")
