"""Clusters for tests: a real authority, and folders with certificates of any name, role and age."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from pathlib import Path

from shardhub.security.authority import Authority
from shardhub.security.certificates import LIFE, Role, new_key
from shardhub.security.hub_certificate import HubCertificate
from shardhub.security.identity import store_identity
from shardhub.security.trust import Trust

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


class Cluster:
    """An authority in a folder of its own, and the machines' folders beside it."""

    def __init__(self, folder: Path, *, now: dt.datetime = NOW, desk: str | None = None) -> None:
        self.folder = folder
        self.authority = Authority.create(folder / "authority", now=now, desk=desk)

    def issue(
        self,
        name: str,
        role: Role,
        *,
        now: dt.datetime = NOW,
        life: dt.timedelta = LIFE,
        place: str | None = None,
        hosts: Iterable[str] = (),
    ) -> Path:
        """Issue a certificate into a folder; a Hub's carries hosts."""
        key = new_key()
        folder = self.folder / (place or f"{name}-{role.value}")
        store_identity(
            folder,
            role,
            key=key,
            certificate=self.authority.issue(key.public_key(), name=name, role=role, now=now, life=life, hosts=hosts),
            authority_pem=self.authority.pem,
            revoked=self.authority.revocations().pem,
            desk=self.authority.ledger().desk,
        )
        return folder

    def hub(
        self,
        *hosts: str,
        name: str = "box",
        now: dt.datetime = NOW,
        life: dt.timedelta = LIFE,
        clock: Callable[[], dt.datetime] | None = None,
    ) -> HubCertificate:
        """A Hub's certificate, by default on a clock that stands at the time of issue."""
        place = f"{name}-hub"

        def issue(certified: Iterable[str]) -> None:
            self.issue(name, Role.HUB, now=now, life=life, place=place, hosts=certified)

        return HubCertificate(
            self.folder / place, hosts=lambda: frozenset(hosts), issue=issue, clock=clock or (lambda: now)
        )

    def trust(
        self, name: str, role: Role, *, now: dt.datetime = NOW, life: dt.timedelta = LIFE, clock: dt.datetime = NOW
    ) -> Trust:
        """The trust of a process on that machine, whose clock stands at `clock`."""
        return Trust(self.issue(name, role, now=now, life=life), role, clock=lambda: clock)
