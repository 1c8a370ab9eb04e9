"""GET /v1/models: the one model that is served."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request

from shardhub.gateway.service import Service, service_of

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List models")
async def list_models(request: Request) -> dict[str, Any]:
    """List the model under each of its names."""
    service = service_of(request)
    names = service.model_names
    if _is_anthropic(request):
        models = [_anthropic_model(service, name) for name in names]
        return {"data": models, "has_more": False, "first_id": names[0], "last_id": names[-1]}
    return {"object": "list", "data": [_model(service, name) for name in names]}


@router.get("/v1/models/{name:path}", summary="Describe a model")
async def one_model(name: str, request: Request) -> dict[str, Any]:
    """Describe the model under one name."""
    service = service_of(request)
    known = service.check_model(name)
    return _anthropic_model(service, known) if _is_anthropic(request) else _model(service, known)


def _is_anthropic(request: Request) -> bool:
    """Whether a client expects Anthropic's format, by the header that all of its clients send."""
    return "anthropic-version" in request.headers


def _anthropic_model(service: Service, name: str) -> dict[str, Any]:
    created = datetime.fromtimestamp(service.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": "model",
        "id": name,
        "display_name": service.head.pipeline.manifest.name,
        "created_at": created,
        "max_input_tokens": service.max_context,
        "max_tokens": service.max_context,
    }


def _model(service: Service, name: str) -> dict[str, Any]:
    manifest = service.head.pipeline.manifest
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "shardhub",
        "root": manifest.name,
        "parent": None,
        "max_model_len": service.max_context,
        "pipeline_id": manifest.pipeline_id,
        "num_stages": len(manifest.stages),
    }
