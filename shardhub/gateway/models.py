"""GET /v1/models: the one model there is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from shardhub.gateway.service import Service, service_of

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List models")
async def list_models(request: Request) -> dict[str, Any]:
    """The model under each of its names."""
    service = service_of(request)
    return {"object": "list", "data": [_model(service, name) for name in service.model_names]}


@router.get("/v1/models/{name:path}", summary="One model")
async def one_model(name: str, request: Request) -> dict[str, Any]:
    """One model."""
    service = service_of(request)
    return _model(service, service.check_model(name))


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
