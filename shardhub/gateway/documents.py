"""Documents that a chat's answer is to be based on, for templates that read them."""

from __future__ import annotations

import re
from typing import Any

from shardhub.gateway.refusals import Refusal
from shardhub.gateway.schema import ChatRequest
from shardhub.gateway.strict import num_chars

# More would not fit into a context.
MAX_DOCUMENTS = 256
MAX_DOCUMENTS_CHARS = 4 << 20


def documents_of(body: ChatRequest, template: str | None) -> dict[str, Any]:
    """The template variable that holds a request's documents; empty if it has none.

    Args:
        template: The model's chat template.

    Raises:
        Refusal: The template does not read documents, or there are too many.
    """
    if not body.documents:
        return {}
    if re.search(r"\bdocuments\b", template or "") is None:
        raise Refusal(
            400,
            "This model's chat template does not support documents: put them into a message.",
            param="documents",
            code="unsupported_value",
        )
    if len(body.documents) > MAX_DOCUMENTS or num_chars(body.documents, param="documents") > MAX_DOCUMENTS_CHARS:
        most = f"{MAX_DOCUMENTS}, of {MAX_DOCUMENTS_CHARS} characters in all"
        raise Refusal(400, f"There are too many documents: the limit is {most}.", param="documents")
    return {"documents": body.documents}
