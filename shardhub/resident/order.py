"""An order: a deployment, and the documents of a pipeline that is published nowhere."""

from __future__ import annotations

from dataclasses import dataclass

from shardhub.errors import FormatError
from shardhub.manifest import Manifest, decode_identified
from shardhub.naming import MANIFEST_FILE, check_file_name
from shardhub.resident.deployments import HANDED_ON, Deployment

# A tokenizer's files take most of it: the largest known take 35 MB.
MAX_ORDER_BYTES = 64 << 20
MAX_DOCUMENTS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedDocument:
    """A file of a pipeline's folder.

    Attributes:
        name: A plain file name.
    """

    name: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a member orders for one pipeline.

    Attributes:
        documents: The files of the pipeline's folder, if its place is `HANDED_ON`; else empty.
    """

    deployment: Deployment
    documents: tuple[HandedDocument, ...] = ()

    def check(self) -> None:
        """Check that the documents are those of the pipeline.

        Raises:
            FormatError: They are too many or too large, have no plain names, or are another pipeline's.
        """
        where = f"the order for {self.deployment.name}"
        names = [check_file_name(document.name, where=where) for document in self.documents]
        size_bytes = sum(len(document.data) for document in self.documents)
        if len(set(names)) != len(names) or len(names) > MAX_DOCUMENTS or size_bytes > MAX_ORDER_BYTES:
            raise FormatError(
                f"The documents of {where} are too many or too large.",
                why=f"They are {len(names)} with {size_bytes} bytes; each has a name of its own, and they have at most "
                f"{MAX_ORDER_BYTES} bytes.",
            )
        if self.deployment.place != HANDED_ON:
            return
        data = next((document.data for document in self.documents if document.name == MANIFEST_FILE), None)
        if data is None:
            raise FormatError(f"The documents of {where} lack {MANIFEST_FILE}.")
        if decode_identified(Manifest, data, where=where).pipeline_id != self.deployment.pipeline_id:
            raise FormatError(f"The manifest of {where} is another pipeline's.")
