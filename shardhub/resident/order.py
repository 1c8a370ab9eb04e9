"""An order: a deployment, and the documents of a pipeline that is published nowhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shardhub.errors import FormatError
from shardhub.manifest import Manifest, decode_identified
from shardhub.naming import MANIFEST_FILE, check_file_name
from shardhub.resident.deployments import HANDED_ON, Deployment
from shardhub.resident.hub_access import is_token

# A tokenizer's files take most of it: the largest known take 35 MB.
MAX_ORDER_BYTES = 64 << 20
MAX_DOCUMENTS = 2048
_MAX_PARTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedDocument:
    """A file of a pipeline that is published nowhere: of its manifest's folder, or of a shard's folder beside that.

    Attributes:
        name: `FILE` or `FOLDER/FILE`, both plain names.
    """

    name: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a member orders for one pipeline.

    Attributes:
        documents: The files of the pipeline's folder, if its place is `HANDED_ON`; else empty.
        hub_token: Token for the deployment's Hub; None if the member named none.
    """

    deployment: Deployment
    documents: tuple[HandedDocument, ...] = ()
    hub_token: str | None = field(default=None, repr=False)

    def for_machine(self, machine: str, *, is_member: bool) -> Order:
        """As a machine gets it, over TLS: the token goes to members, and to the machines that are to serve."""
        is_entrusted = is_member or any(each.machine == machine for each in self.deployment.assignments)
        return self if is_entrusted else replace(self, hub_token=None)

    def check(self) -> None:
        """Check that the documents are those of the pipeline.

        Raises:
            FormatError: They are too many or too large, have no plain names, or are another pipeline's.
        """
        where = f"the order for {self.deployment.name}"
        if self.hub_token is not None and self.deployment.hub is None:
            raise FormatError(f"{where[:1].upper()}{where[1:]} has a token, and names no Hub that it is for.")
        if self.hub_token is not None and not is_token(self.hub_token):
            raise FormatError(
                f"{where[:1].upper()}{where[1:]} carries a text that cannot be a Hub token.",
                why="A token has letters, digits and signs, without blanks.",
                hint="Set HF_TOKEN to the token alone, and give the order again.",
            )
        names = [_check_path(document.name, where=where) for document in self.documents]
        size_bytes = sum(len(document.data) for document in self.documents)
        if len(set(names)) != len(names) or len(names) > MAX_DOCUMENTS or size_bytes > MAX_ORDER_BYTES:
            raise FormatError(
                f"The documents of {where} are too many or too large.",
                why=f"They are {len(names)} with {size_bytes} bytes; each has a name of its own, and they have at most "
                f"{MAX_ORDER_BYTES} bytes.",
            )
        if self.deployment.place != HANDED_ON:
            return
        manifests = [each.data for each in self.documents if each.name.rpartition("/")[2] == MANIFEST_FILE]
        if len(manifests) != 1:
            raise FormatError(f"The documents of {where} have {len(manifests)} files {MANIFEST_FILE} instead of one.")
        if decode_identified(Manifest, manifests[0], where=where).pipeline_id != self.deployment.pipeline_id:
            raise FormatError(f"The manifest of {where} is another pipeline's.")


def _check_path(name: str, *, where: str) -> str:
    """Check that a document's name leads to a file in its folder, or in a folder of that.

    Raises:
        FormatError: It leads elsewhere.
    """
    parts = name.split("/")
    if len(parts) > _MAX_PARTS:
        raise FormatError(f"{where}: {name[:200]!r} is neither FILE nor FOLDER/FILE.")
    for part in parts:
        check_file_name(part, where=where)
    return name
