"""What a resident keeps on disk: orders with their documents, and the machines it knows. Each file is written whole."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from shardhub.errors import DiskFull, FormatError, ResourceError, ShardhubError
from shardhub.manifest import Document, decode, encode, sha256_hex
from shardhub.naming import MANIFEST_FILE
from shardhub.placing.cluster import MAX_MACHINES
from shardhub.regular_files import read_file
from shardhub.resident.deployments import HANDED_ON, Deployment, Deployments
from shardhub.resident.hub_access import HubAccess, HubToken, HubUrl
from shardhub.resident.machine import KnownMachine, LeftMachines, Report
from shardhub.resident.order import MAX_ORDER_BYTES, HandedDocument, Order
from shardhub.whole_files import write_whole

log = logging.getLogger(__name__)

_MAX_FILE_BYTES = 4 << 20
_MEMBERS_FILE = "members.json"
_TOKENS_FILE = "hub_tokens.json"
_MAX_HUBS = 256
_PRIVATE = 0o700
# Digits that tell the files of pipelines apart.
_DIGITS = 8

D = TypeVar("D", bound=Document)


class MembersFile(Report):
    """The machines that a resident knew when it wrote this."""

    kind: Literal["shardhub-members"] = "shardhub-members"
    format_version: Literal[1] = 1
    members: Annotated[tuple[KnownMachine, ...], Field(max_length=MAX_MACHINES)] = ()
    left: LeftMachines = ()


class TokensFile(Report):
    """Tokens that came with orders, by the URL of the Hub that each is for."""

    model_config = ConfigDict(hide_input_in_errors=True)

    kind: Literal["shardhub-hub-tokens"] = "shardhub-hub-tokens"
    format_version: Literal[1] = 1
    tokens: Annotated[dict[HubUrl, HubToken], Field(max_length=_MAX_HUBS)]


class ClusterFolder:
    """The folder of a machine's state in its cluster.

    Args:
        path: Made if it is missing; only its owner may read it.

    Raises:
        ResourceError: It cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._deployments = path / "deployments"
        self._manifests = path / "manifests"
        try:
            for folder in (path, self._deployments, self._manifests):
                folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        except OSError as error:
            raise not_kept("The state of this machine", path, error) from error

    @property
    def nodes(self) -> Path:
        """The folder of the nodes' records and logs."""
        return self.path / "nodes"

    @property
    def record(self) -> Path:
        """The resident's record; see `NodeRecord`."""
        return self.path / "resident.json"

    @property
    def log(self) -> Path:
        """The log of a resident that runs in the background."""
        return self.path / "resident.log"

    def manifest_folder(self, pipeline_id: str) -> Path:
        """The folder with the manifest of a pipeline that was handed on with its order."""
        handed = self._manifests / pipeline_id
        return next((path.parent for path in sorted(handed.glob(f"*/{MANIFEST_FILE}"))), handed)

    def deployments(self) -> Deployments:
        """The orders that were kept; a file that cannot be read is left out, and others send the order again."""
        known = Deployments()
        for path in sorted(self._deployments.glob("*.json")):
            deployment = self._read(Deployment, path)
            if deployment is not None:
                known.take(deployment)
        return known

    def keep(self, order: Order) -> None:
        """Keep an order, in place of an earlier one for the same pipeline.

        Raises:
            ResourceError: The disk is full, or cannot be written.
        """
        deployment = order.deployment
        try:
            if deployment.place == HANDED_ON and deployment.pipeline_id is not None:
                self._keep_documents(deployment.pipeline_id, order.documents)
            if deployment.hub is not None and order.hub_token is not None:
                self._keep_tokens({**self._tokens(), deployment.hub: order.hub_token})
            write_whole(self._deployments / _file_name(deployment.name), encode(deployment), mode=0o600)
            (self._deployments / f"{deployment.name}.json").unlink(missing_ok=True)  # of an earlier version
        except OSError as error:
            raise not_kept(f"The order for {deployment.name}", self.path, error) from error

    def order(self, deployment: Deployment) -> Order | None:
        """A kept order with its documents; None if they cannot be read."""
        access = self.hub_access(deployment)
        token = None if access is None else access.token
        if deployment.place != HANDED_ON or deployment.pipeline_id is None:
            return Order(deployment=deployment, hub_token=token)
        folder = self._manifests / deployment.pipeline_id
        try:
            documents = tuple(
                HandedDocument(name=path.relative_to(folder).as_posix(), data=read_file(path, MAX_ORDER_BYTES))
                for path in sorted(folder.rglob("*"))
                if not path.is_dir() and not _is_hidden(path.relative_to(folder))
            )
            order = Order(deployment=deployment, documents=documents, hub_token=token)
            order.check()
        except (OSError, ShardhubError) as error:
            log.warning("the documents of %s cannot be handed on: %s", deployment.name, error)
            return None
        return order

    def forget_unused(self, deployments: Iterable[Deployment]) -> None:
        """Remove the documents of pipelines that are not ordered any more, and the tokens of their Hubs."""
        ordered = list(deployments)
        used = {deployment.pipeline_id for deployment in ordered}
        for folder in self._manifests.iterdir():
            if folder.name not in used:
                shutil.rmtree(folder, ignore_errors=True)
        tokens = self._tokens()
        kept = {hub: token for hub, token in tokens.items() if hub in {deployment.hub for deployment in ordered}}
        if kept != tokens:
            try:
                self._keep_tokens(kept)
            except OSError as error:
                log.warning("%s", not_kept("The list of tokens", self.path, error))

    def hub_access(self, deployment: Deployment) -> HubAccess | None:
        """The Hub that a pipeline is fetched from, with the token that came with its order; None if none is named."""
        if deployment.hub is None:
            return None
        return HubAccess(endpoint=deployment.hub, token=self._tokens().get(deployment.hub))

    def members(self) -> MembersFile:
        """The machines that were known, and the names of those that have left."""
        path = self.path / _MEMBERS_FILE
        return (self._read(MembersFile, path) if path.exists() else None) or MembersFile()

    def keep_members(self, members: Iterable[KnownMachine], left: Iterable[str] = ()) -> None:
        """Keep where machines are and what they can do, not what they serve; on a full disk, the earlier ones stay."""
        kept = MembersFile(members=tuple(_lasting(each) for each in members), left=tuple(left))
        try:
            write_whole(self.path / _MEMBERS_FILE, encode(kept), mode=0o600)
        except OSError as error:
            log.warning("%s", not_kept("The list of members", self.path, error))

    def _tokens(self) -> dict[str, str]:
        path = self.path / _TOKENS_FILE
        kept = self._read(TokensFile, path) if path.exists() else None
        return {} if kept is None else kept.tokens

    def _keep_tokens(self, tokens: dict[str, str]) -> None:
        try:
            file = TokensFile(tokens=tokens)
        except ValidationError:
            # Its message would quote a token.
            raise FormatError(
                f"The tokens of {len(tokens)} Hubs were not kept.",
                why=f"One of them cannot be a token of a Hub, or there are more than {_MAX_HUBS}.",
                hint="Give the order with another token, or take down what is up from other Hubs.",
            ) from None
        write_whole(self.path / _TOKENS_FILE, encode(file), mode=0o600)

    def _keep_documents(self, pipeline_id: str, documents: Iterable[HandedDocument]) -> None:
        for document in documents:
            path = self._manifests / pipeline_id / document.name
            path.parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            write_whole(path, document.data, mode=0o600)

    @staticmethod
    def _read(kind: type[D], path: Path) -> D | None:
        try:
            return decode(kind, read_file(path, _MAX_FILE_BYTES), where=str(path))
        except (OSError, ShardhubError) as error:
            log.warning("%s is left out: %s", path, error)
            return None


def _file_name(pipeline: str) -> str:
    """Name of the file of a pipeline's order: macOS takes names for one that differ in their case only."""
    return f"{pipeline}-{sha256_hex(pipeline.encode())[:_DIGITS]}.json"


def _is_hidden(path: Path) -> bool:
    """Whether a file came into a folder beside what was handed on, such as .DS_Store."""
    return any(part.startswith(".") for part in path.parts)


def _lasting(machine: KnownMachine) -> KnownMachine:
    """What is worth keeping of a machine: what its nodes do is said again before it could be read."""
    facts = machine.facts
    if facts is not None:
        facts = facts.model_copy(update={"links": (), "held": {}})
    return machine.model_copy(update={"facts": facts, "nodes": (), "trouble": ""})


def not_kept(what: str, folder: Path, error: OSError) -> ResourceError:
    """The error for something that could not be written to a folder."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"{what} was not kept: the disk is full.",
            why=f"{folder} cannot be written.",
            hint="Make room there (`shardhub prune` frees the cache), and do the same again.",
        )
    return ResourceError(
        f"{what} was not kept.", why=f"{folder}: {error.strerror}.", hint="Make that folder writable for this user."
    )
