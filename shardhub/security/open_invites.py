"""Invitations to a cluster that several machines may use, each under its own name, until they expire.

They are kept in the authority's folder, so that the process that answers may be another one than made them, and may be
restarted. Of each the file has a digest of the secret, not the secret: 160 random bits, which nobody guesses over a
network, however often.
"""

from __future__ import annotations

import datetime as dt
import hmac
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from shardhub.errors import CertificateRefused
from shardhub.locks import lock_held
from shardhub.manifest import Document, decode
from shardhub.security.certificates import Role
from shardhub.security.files import read_file, write_file
from shardhub.security.invite import new_secret, secret_digest

INVITES_FILE = "invites.json"
_LOCK_FILE = "invites.lock"
# Far more than anybody needs at once; each costs a comparison.
_MAX_OPEN = 64


class OpenInvite(Document):
    """An invitation in the file.

    Attributes:
        digest: Sha256 of the secret, in hexadecimal.
        role: What a machine that uses it may become, or less.
        until: When it expires, in ISO 8601.
    """

    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    role: Role
    until: str


class InviteFile(Document):
    """The authority's open invitations."""

    kind: Literal["shardhub-invites"] = "shardhub-invites"
    format_version: Literal[1] = 1
    invites: Annotated[tuple[OpenInvite, ...], Field(max_length=_MAX_OPEN)] = ()


class OpenInvites:
    """The open invitations of the authority in a folder.

    Args:
        folder: The authority's.
        clock: Returns the current time.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], dt.datetime]) -> None:
        self._path = folder / INVITES_FILE
        self._lock = folder / _LOCK_FILE
        self._clock = clock

    def make(self, role: Role, life: dt.timedelta) -> str:
        """Make an invitation, and return its secret; of too many open ones, the oldest ends.

        Args:
            role: What a machine that uses it may become, or less.
            life: How long it can be used.

        Raises:
            IdentityError, FormatError: The file cannot be read or written.
        """
        secret = new_secret()
        made = OpenInvite(
            digest=secret_digest(secret).hex(),
            role=role,
            until=(self._clock() + life).isoformat(timespec="seconds"),
        )
        with self._locked():
            # Expired ones stay while there is room, so that a machine that comes late learns why it is refused.
            now = self._clock()
            kept = sorted(self._kept(), key=lambda invite: dt.datetime.fromisoformat(invite.until) > now)
            self._write([*kept, made][-_MAX_OPEN:])
        return secret

    def close(self) -> None:
        """End all invitations."""
        with self._locked():
            self._write([])

    def admit(self, secret: str, role: Role) -> None:
        """Check that a machine may join in a role.

        Raises:
            CertificateRefused: No open invitation has this secret, or its role is another one.
            IdentityError, FormatError: The file cannot be read.
        """
        digest = secret_digest(secret).hex()
        # Every one is compared, so that the time says nothing.
        matching = [invite for invite in self._kept() if hmac.compare_digest(invite.digest, digest)]
        hint = "On the cluster's first machine, make a new one: shardhub cluster invite"
        if not matching:
            raise CertificateRefused(
                "This invitation is not open.",
                why="It has expired, was ended, or was not copied whole.",
                hint=hint,
            )
        if (until := dt.datetime.fromisoformat(matching[0].until)) <= self._clock():
            raise CertificateRefused(
                "This invitation has expired.", why=f"It could be used until {until:%Y-%m-%d %H:%M} UTC.", hint=hint
            )
        if not matching[0].role.includes(role):
            raise CertificateRefused(
                f"This invitation does not let a machine join as a {role.value}.",
                why=f"It is for a {matching[0].role.value}.",
                hint="Join with `serve_only`, or ask for another invitation: shardhub cluster invite",
            )

    def _kept(self) -> Sequence[OpenInvite]:
        if not self._path.exists():
            return ()
        return decode(InviteFile, read_file(self._path, private=True), where=str(self._path)).invites

    def _write(self, invites: Sequence[OpenInvite]) -> None:
        text = json.dumps(InviteFile(invites=tuple(invites)).model_dump(mode="json"), indent=1)
        write_file(self._path, text.encode(), private=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with lock_held(self._lock, mode=0o600):
            yield
