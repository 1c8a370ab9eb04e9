"""Routes of OpenAI's and Ollama's APIs that need a model of another kind. They answer 501 and say what to do instead.

A pipeline's models are trained to continue text. A vector made of their hidden states would look like an embedding and
be useless for search.
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from shardhub.gateway.refusals import Refusal

router = APIRouter(include_in_schema=False)

_EMBEDDINGS = (
    "This gateway serves a model that generates text and is not trained for embeddings. Run a server with an "
    "embedding model as well (Ollama with nomic-embed-text, llama-server --embeddings, text-embeddings-inference), "
    "and give its URL to the client for embeddings."
)
_OTHERS = "This gateway serves a model that generates text. Run another server for {what}."


@router.post("/v1/embeddings")
@router.post("/api/embed")
@router.post("/api/embeddings")
async def embeddings() -> Response:
    """Refuse requests for embeddings."""
    raise _absent(_EMBEDDINGS)


@router.post("/v1/rerank")
@router.post("/v1/score")
async def rerank() -> Response:
    """Refuse requests for ranking."""
    raise _absent(_OTHERS.format(what="ranking"))


@router.post("/v1/audio/{what:path}")
async def audio(what: str) -> Response:
    """Refuse requests for audio."""
    raise _absent(_OTHERS.format(what="audio"))


@router.post("/v1/images/{what:path}")
async def images(what: str) -> Response:
    """Refuse requests for images."""
    raise _absent(_OTHERS.format(what="images"))


@router.post("/v1/moderations")
async def moderations() -> Response:
    """Refuse requests for moderation."""
    raise _absent(_OTHERS.format(what="moderation"))


def _absent(message: str) -> Refusal:
    # OpenAI's clients retry after a 5xx unless this header forbids it.
    return Refusal(501, message, code="not_implemented", headers={"x-should-retry": "false"})
