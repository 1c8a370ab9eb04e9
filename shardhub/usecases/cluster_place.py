"""Where a machine's state in its cluster is, how its certificate stands for it, and where its own resident answers."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from shardhub.address import Address
from shardhub.errors import IdentityError, NodeUnreachable
from shardhub.listening import is_unspecified
from shardhub.manifest import decode, encode
from shardhub.regular_files import read_file
from shardhub.resident.deployments import MachineName
from shardhub.resident.kept import ClusterFolder, not_kept
from shardhub.resident.machine import Report
from shardhub.resident.records import NodeState, read_record
from shardhub.security.certificates import Role
from shardhub.security.folders import default_folder, named_folder
from shardhub.security.identity import has_identity, identity_file
from shardhub.security.trust import Security, Trust
from shardhub.usecases.state import state_folder
from shardhub.whole_files import write_whole

_MACHINE_FILE = "machine.json"
_MAX_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlace:
    """The folders of a machine's state and certificates; None takes this user's own.

    Attributes:
        state: The folder of state.
        tls: The folder of certificates; if it is named, TLS is used on loopback too.
    """

    state: Path | None = None
    tls: Path | None = None

    @property
    def folder(self) -> ClusterFolder:
        """What the machine keeps of its cluster."""
        return ClusterFolder((self.state or state_folder()) / "cluster")

    @property
    def named_tls(self) -> Path | None:
        """The folder of certificates that was named, here or in SHARDHUB_TLS."""
        return self.tls or named_folder()

    def trust(self) -> Trust | None:
        """The trust of this machine: a member's or a node's; None without a certificate.

        Raises:
            IdentityError: Its certificate cannot be used, or is a head's only.
        """
        folder = self.named_tls or default_folder()
        if identity_file(folder, Role.MEMBER).exists():
            return Trust(folder, Role.MEMBER)
        if has_identity(folder, Role.NODE):
            return Trust(folder, Role.NODE)
        if has_identity(folder, Role.HEAD):
            raise IdentityError(
                "This machine's certificate is for a head only, which serves nothing.",
                why=f"It is in {folder}.",
                hint="Join the cluster as a member: shardhub join LINE",
            )
        return None


class MachineFile(Report):
    """What a resident writes of itself for commands on its machine.

    Attributes:
        tls: Whether it answers with TLS only.
    """

    kind: Literal["shardhub-own-machine"] = "shardhub-own-machine"
    format_version: Literal[1] = 1
    name: MachineName
    role: Literal["member", "node"]
    tls: bool
    insecure_lan: bool = False
    version: Annotated[str, Field(max_length=64)]


def write_machine(folder: ClusterFolder, machine: MachineFile) -> None:
    """Write what commands need to know of the resident.

    Raises:
        ResourceError: The file cannot be written.
    """
    try:
        write_whole(folder.path / _MACHINE_FILE, encode(machine), mode=0o600)
    except OSError as error:
        raise not_kept("What commands need to know of the resident", folder.path, error) from error


def read_machine(folder: ClusterFolder) -> MachineFile | None:
    """What the resident wrote last; None if none ever ran here."""
    path = folder.path / _MACHINE_FILE
    if not path.exists():
        return None
    return decode(MachineFile, read_file(path, _MAX_BYTES), where=str(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnResident:
    """This machine's resident.

    Attributes:
        address: HOST:PORT where commands of this machine reach it.
        security: How they, and others in its place, reach it and other machines.
    """

    address: str
    security: Security
    machine: MachineFile


def own_resident(place: ClusterPlace, *, insecure_lan: bool = False) -> OwnResident:
    """Where this machine's resident answers.

    Raises:
        NodeUnreachable: None runs here.
        IdentityError: This machine's certificate cannot be used.
    """
    folder = place.folder
    record, machine = read_record(folder.record), read_machine(folder)
    if record is None or machine is None or record.process is None or record.state is not NodeState.READY:
        raise NodeUnreachable(
            "No resident runs on this machine.",
            why="It has not been started."
            if record is None
            else "It has ended."
            if record.process is None
            else "It starts.",
            hint="Start it: shardhub resident start",
        )
    at = Address.parse(record.address or "")
    host = ("::1" if ":" in at.host else "127.0.0.1") if is_unspecified(at.host) else at.host
    is_insecure = insecure_lan or machine.insecure_lan
    trust = place.trust() if machine.tls else None
    security = Security(trust=trust, everywhere=trust is not None, insecure_lan=is_insecure)
    return OwnResident(address=str(Address(host, at.port)), security=security, machine=machine)


def own_name() -> str:
    """A name for this machine, from its host name."""
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")[:63].strip("-")
    return name or "machine"
