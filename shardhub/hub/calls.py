"""Calls to a Hub: named for messages, retried while the Hub is busy, and with errors mapped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from shardhub.errors import AccessError, HubRefused
from shardhub.hub.failures import hub_failures
from shardhub.hub.retry import with_retries

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The owner of the token in use.

    Attributes:
        name: User, which is also the default namespace of repos.
        role: The token's role according to the Hub: `read`, `write`, `fineGrained` or empty.
    """

    name: str
    role: str
    namespaces: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class HubCalls:
    """The Hub's client, with retries.

    Attributes:
        notice: Called with a line for every wait.
        sleep: Waits for a number of seconds.
    """

    api: HfApi
    notice: Callable[[str], None] = field(default=lambda _: None)
    sleep: Callable[[float], None] = time.sleep

    def run(self, call: Callable[[], T], *, what: str, repo: str | None = None, revision: str | None = None) -> T:
        """Make a call that may be repeated; see `failures.hub_failures` for the errors it raises."""
        with hub_failures(what, api=self.api, repo=repo, revision=revision):
            return with_retries(lambda: _plain(call), what=what, notice=self.notice, sleep=self.sleep)

    def account(self) -> Account:
        """The owner of the token.

        Raises:
            AccessError: There is no token, or the Hub does not know it.
        """
        answer = self.run(lambda: self.api.whoami(), what="looking up the token's account")
        token = (answer.get("auth") or {}).get("accessToken") or {}
        namespaces = frozenset({str(answer["name"]), *(str(org.get("name")) for org in answer.get("orgs") or [])})
        return Account(name=str(answer["name"]), role=str(token.get("role", "")), namespaces=namespaces)

    def writer(self) -> Account:
        """The owner of the token, which must allow writing.

        Raises:
            AccessError: As `account`, or the token can only read.
        """
        account = self.account()
        if account.role == "read":
            raise AccessError(
                f"The token of {account.name} cannot write.",
                why=f"{self.api.endpoint} says its role is read.",
                hint="Create a token with write access, and set HF_TOKEN to it.",
            )
        return account


def _plain(call: Callable[[], T]) -> T:
    """Make a call, and raise the causes of the general errors in which the client wraps them."""
    try:
        return call()
    except RuntimeError as error:
        # "Error while uploading ...": the cause decides whether another try makes sense.
        if isinstance(error.__cause__, Exception):
            raise error.__cause__ from error
        raise
    except ValueError as error:
        text = str(error)
        if text.startswith(("LFS batch API returned errors", "Invalid metadata")):
            raise HubRefused("The Hub refused these files.", why=" ".join(text.split())[:300]) from error
        raise
