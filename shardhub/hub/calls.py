"""Calls to a Hub that changes: each with its name for messages, tried again while the Hub is busy, errors mapped."""

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
    """Whose token is used.

    Attributes:
        name: User, and the namespace that repos get unless told otherwise.
        role: What the Hub says the token may do; `read`, `write`, `fineGrained` or empty.
    """

    name: str
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HubCalls:
    """The Hub's client, and what to do while it waits.

    Attributes:
        notice: Told a line for every wait.
        sleep: Waits so many seconds.
    """

    api: HfApi
    notice: Callable[[str], None] = field(default=lambda _: None)
    sleep: Callable[[float], None] = time.sleep

    def run(self, call: Callable[[], T], *, what: str, repo: str | None = None, revision: str | None = None) -> T:
        """Make a call that may be made again; see `failures.hub_failures` for what it raises."""
        with hub_failures(what, api=self.api, repo=repo, revision=revision):
            return with_retries(lambda: _plain(call), what=what, notice=self.notice, sleep=self.sleep)

    def account(self) -> Account:
        """Whose token this is.

        Raises:
            AccessError: There is none, or the Hub does not know it.
        """
        answer = self.run(lambda: self.api.whoami(), what="asking whose token this is")
        token = (answer.get("auth") or {}).get("accessToken") or {}
        return Account(name=str(answer["name"]), role=str(token.get("role", "")))

    def writer(self) -> Account:
        """Whose token this is, if it may write.

        Raises:
            AccessError: As `account`, or the token can only read.
        """
        account = self.account()
        if account.role == "read":
            raise AccessError(
                f"The token of {account.name} can only read.",
                why=f"{self.api.endpoint} says its role is read.",
                hint="Make one that may write, and set HF_TOKEN to it.",
            )
        return account


def _plain(call: Callable[[], T]) -> T:
    """Make a call, and raise what is behind the errors that the client wraps in general ones."""
    try:
        return call()
    except RuntimeError as error:
        # "Error while uploading ...": the cause says whether it is worth another try.
        if isinstance(error.__cause__, Exception):
            raise error.__cause__ from error
        raise
    except ValueError as error:
        text = str(error)
        if text.startswith(("LFS batch API returned errors", "Invalid metadata")):
            raise HubRefused("The Hub does not take these files.", why=" ".join(text.split())[:300]) from error
        raise
