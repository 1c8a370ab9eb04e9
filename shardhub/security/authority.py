"""A cluster's authority: a folder with its key, the certificates it issued, and those it revoked."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import Certificate
from pydantic import Field

from shardhub.errors import CertificateRefused, IdentityError, UsageError
from shardhub.locks import lock_held
from shardhub.manifest import Document, decode, encode
from shardhub.security.certificates import (
    LIFE,
    MACHINE_ROLES,
    NAME_PATTERN,
    Role,
    check_name,
    fingerprint,
    key_pem,
    load_certificate,
    make_authority,
    make_certificate,
    new_key,
    pem,
)
from shardhub.security.files import make_folder, read_file, write_file
from shardhub.security.revocations import Revocations, make_revocations, read_revocations

CERTIFICATE_FILE = "authority.pem"
KEY_FILE = "authority.key"
LEDGER_FILE = "ledger.json"
REVOKED_FILE = "revoked.pem"
_LOCK_FILE = "lock"
OWN_NAME = "authority"
# Of a name that gets a number, so that both together are a name.
_MAX_STEM = 56
# More revocation lists than are made between a backup and its restoration.
_RESTORED_STEP = 1000


class Issued(Document):
    """A certificate in the ledger: serial in hexadecimal, times in ISO 8601."""

    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
    role: Role
    serial: Annotated[str, Field(pattern="^[0-9a-f]{1,40}$")]
    issued_at: str
    not_after: str
    revoked_at: str | None = None


class Ledger(Document):
    """The certificates an authority issued.

    Attributes:
        desk: HOST:PORT where `certs serve` renews certificates; None if not set.
    """

    kind: Literal["shardhub-ledger"] = "shardhub-ledger"
    format_version: Literal[1] = 1
    desk: str | None = None
    issued: tuple[Issued, ...] = ()


class Authority:
    """An authority in its folder; make one with `create` or `open`."""

    def __init__(self, folder: Path, certificate: Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.folder = folder
        self.certificate = certificate
        self._key = key

    @classmethod
    def create(cls, folder: Path, *, now: dt.datetime, desk: str | None = None) -> Authority:
        """Make an authority.

        Args:
            desk: HOST:PORT where certificates will be renewed.

        Raises:
            UsageError: The folder already has one.
            IdentityError: The folder cannot be written.
        """
        if (folder / KEY_FILE).exists():
            raise UsageError(f"{folder} already holds an authority.", hint="Show it with `shardhub certs show`.")
        make_folder(folder)
        key = new_key()
        made = cls(folder, make_authority(key, now), key)
        write_file(folder / CERTIFICATE_FILE, pem(made.certificate), private=False)
        write_file(folder / LEDGER_FILE, encode(Ledger(desk=desk)), private=True)
        write_file(
            folder / REVOKED_FILE, make_revocations(made.certificate, key, (), number=1, now=now).pem, private=False
        )
        write_file(folder / KEY_FILE, key_pem(key), private=True)
        return made

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Open the authority in a folder.

        Raises:
            UsageError: The folder has no authority.
            IdentityError: Its files are damaged, or others can read its key.
        """
        if not (folder / KEY_FILE).exists():
            raise UsageError(
                f"{folder} does not hold an authority.",
                hint="Create one with `shardhub certs init`, or run this command on the machine that has it.",
            )
        data = read_file(folder / KEY_FILE, private=True)
        try:
            key = serialization.load_pem_private_key(data, password=None)
            certificate = load_certificate(read_file(folder / CERTIFICATE_FILE, private=False))
        except (ValueError, TypeError, CertificateRefused) as error:
            raise IdentityError(
                f"The authority in {folder} is damaged.", hint="Restore the folder from a backup."
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise IdentityError(f"Key and certificate in {folder} do not match.")
        return cls(folder, certificate, key)

    @property
    def fingerprint(self) -> str:
        """Sha256 of its certificate, by which others identify this authority."""
        return fingerprint(self.certificate)

    @property
    def pem(self) -> bytes:
        """The authority's certificate as PEM."""
        return pem(self.certificate)

    def ledger(self) -> Ledger:
        """Read the ledger of issued certificates.

        Raises:
            IdentityError, FormatError: The ledger cannot be read.
        """
        path = self.folder / LEDGER_FILE
        return decode(Ledger, read_file(path, private=True), where=str(path))

    def revocations(self) -> Revocations:
        """The newest revocation list."""
        return read_revocations(read_file(self.folder / REVOKED_FILE, private=False), self.certificate)

    def issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        *,
        name: str,
        role: Role,
        now: dt.datetime,
        life: dt.timedelta = LIFE,
        hosts: Iterable[str] = (),
    ) -> Certificate:
        """Issue a certificate to a machine or its Hub.

        Args:
            hosts: A Hub's host names and IP addresses.

        Raises:
            UsageError: The name or a host is not valid.
            CertificateRefused: The name was revoked.
        """
        check_name(name)
        if role not in (*MACHINE_ROLES, Role.HUB):
            raise UsageError(f"A machine cannot have the role {role.value}.")
        if name == OWN_NAME:
            raise UsageError(f"{name} is the authority's own name.", hint="Choose another name.")
        with self._locked():
            ledger = self.ledger()
            self.check_not_revoked(name, ledger)
            made = make_certificate(
                self.certificate, self._key, public_key, name=name, role=role, now=now, life=life, hosts=hosts
            )
            entry = Issued(
                name=name,
                role=role,
                serial=f"{made.serial_number:x}",
                issued_at=now.isoformat(timespec="seconds"),
                not_after=made.not_valid_after_utc.isoformat(timespec="seconds"),
            )
            # Certificates that expired long ago can be neither used nor renewed: drop them to keep the ledger small.
            kept = tuple(one for one in ledger.issued if one.revoked_at or _is_recent(one, now))
            self._write(ledger.model_copy(update={"issued": (*kept, entry)}))
        return made

    def free_name(self, name: str) -> str:
        """A name that no machine has: the given one, or the first of NAME-2, NAME-3 and so on.

        Raises:
            UsageError: The name is not valid.
        """
        taken = {one.name for one in self.ledger().issued} | {OWN_NAME}
        if check_name(name) not in taken:
            return name
        numbered = (f"{name[:_MAX_STEM]}-{number}" for number in count(2))
        return next(each for each in numbered if each not in taken)

    def check_not_revoked(self, name: str, ledger: Ledger | None = None) -> None:
        """Check that a name was not revoked; a revoked name is never reused, so that it stands for one owner for ever.

        Raises:
            CertificateRefused: The name was revoked.
        """
        if any(one.name == name and one.revoked_at for one in (ledger or self.ledger()).issued):
            raise CertificateRefused(
                f"{name} was revoked.",
                why="The name of a revoked certificate cannot be used again.",
                hint=f"Choose another name, such as {name}-2.",
            )

    def revoke(self, name: str, *, now: dt.datetime) -> Revocations:
        """Revoke every certificate of a name, and sign the new list.

        Raises:
            UsageError: No certificate was ever issued to it.
        """
        with self._locked():
            ledger = self.ledger()
            if not any(one.name == name for one in ledger.issued):
                names = ", ".join(sorted({one.name for one in ledger.issued})) or "no machine"
                raise UsageError(
                    f"No certificate was issued to {name[:80]}.", why=f"Certificates were issued to: {names}."
                )
            when = now.isoformat(timespec="seconds")
            issued = tuple(
                one.model_copy(update={"revoked_at": when}) if one.name == name and not one.revoked_at else one
                for one in ledger.issued
            )
            number = self.revocations().number + 1
            serials = [int(one.serial, 16) for one in issued if one.revoked_at]
            made = make_revocations(self.certificate, self._key, serials, number=number, now=now)
            # The list first: after a crash in between, peers refuse the name, and it can be revoked again.
            write_file(self.folder / REVOKED_FILE, made.pem, private=False)
            self._write(ledger.model_copy(update={"issued": issued}))
        return made

    def move(self, desk: str | None, *, now: dt.datetime) -> None:
        """Let another machine keep this authority, from a backup.

        Revocation lists get much higher numbers: machines ignore lists with numbers that they have seen, and the backup
        does not know how many were made after it.

        Args:
            desk: HOST:PORT where certificates are renewed from now on.
        """
        with self._locked():
            ledger = self.ledger()
            number = self.revocations().number + _RESTORED_STEP
            serials = [int(one.serial, 16) for one in ledger.issued if one.revoked_at]
            made = make_revocations(self.certificate, self._key, serials, number=number, now=now)
            write_file(self.folder / REVOKED_FILE, made.pem, private=False)
            self._write(ledger.model_copy(update={"desk": desk}))

    def set_desk(self, desk: str) -> None:
        """Tell machines that join from now on where certificates are renewed: HOST:PORT."""
        with self._locked():
            self._write(self.ledger().model_copy(update={"desk": desk}))

    def _write(self, ledger: Ledger) -> None:
        # Indented, not canonical like published documents, as people read it.
        text = json.dumps(ledger.model_dump(mode="json"), indent=1)
        write_file(self.folder / LEDGER_FILE, text.encode(), private=True)

    def own_certificate(
        self, key: ec.EllipticCurvePrivateKey, *, role: Role, now: dt.datetime, life: dt.timedelta
    ) -> Certificate:
        """Make a short-lived certificate for a process of the authority itself; it is not in the ledger."""
        return make_certificate(
            self.certificate, self._key, key.public_key(), name=OWN_NAME, role=role, now=now, life=life
        )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Serialise issuing and revoking across all processes."""
        with lock_held(self.folder / _LOCK_FILE, mode=0o600):
            yield


def _is_recent(one: Issued, now: dt.datetime) -> bool:
    return dt.datetime.fromisoformat(one.not_after) > now - LIFE
