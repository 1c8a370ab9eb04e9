"""GET /v1/models: the models that are served."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request

from shardhub.gateway.served_models import models_of
from shardhub.gateway.service import Service

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List models")
async def list_models(request: Request) -> dict[str, Any]:
    """List each model under each of its names."""
    models = models_of(request)
    names = models.names
    if _is_anthropic(request):
        listed = [_anthropic_model(models.named(name), name) for name in names]
        ends = {"first_id": names[0], "last_id": names[-1]} if names else {"first_id": None, "last_id": None}
        return {"data": listed, "has_more": False, **ends}
    return {"object": "list", "data": [_model(models.named(name), name) for name in names]}


@router.get("/v1/models/{name:path}", summary="Describe a model")
async def one_model(name: str, request: Request) -> dict[str, Any]:
    """Describe the model under one name."""
    services = models_of(request).named(name)
    known = services[0].reported_name(name)
    return _anthropic_model(services, known) if _is_anthropic(request) else _model(services, known)


def context_of(services: Sequence[Service]) -> int:
    """Positions of a prompt and its answer, whichever of a model's chains runs them."""
    return min(service.max_context for service in services)


def _is_anthropic(request: Request) -> bool:
    """Whether a client expects Anthropic's format, by the header that all of its clients send."""
    return "anthropic-version" in request.headers


def _anthropic_model(services: Sequence[Service], name: str) -> dict[str, Any]:
    context = context_of(services)
    created = datetime.fromtimestamp(services[0].created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": "model",
        "id": name,
        "display_name": services[0].head.pipeline.manifest.name,
        "created_at": created,
        "max_input_tokens": context,
        "max_tokens": context,
    }


def _model(services: Sequence[Service], name: str) -> dict[str, Any]:
    manifest = services[0].head.pipeline.manifest
    return {
        "id": name,
        "object": "model",
        "created": services[0].created,
        "owned_by": "shardhub",
        "root": manifest.name,
        "parent": None,
        "max_model_len": context_of(services),
        "pipeline_id": manifest.pipeline_id,
        "num_stages": len(manifest.stages),
        "num_chains": len(services),
    }
