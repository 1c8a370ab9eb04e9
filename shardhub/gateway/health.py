"""Health, readiness, version and metrics of the gateway."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from shardhub.chain.failures import describe_error
from shardhub.gateway.refusals import RETRY_AFTER_S, Refusal
from shardhub.gateway.service import service_of
from shardhub.version import __version__

router = APIRouter(tags=["health"])


@router.get("/health/live", summary="Whether the process answers")
async def live() -> dict[str, str]:
    """Liveness: 200 as long as the process answers."""
    return {"status": "ok"}


@router.get("/health/ready", summary="Whether requests are answered")
async def ready(request: Request) -> JSONResponse:
    """Readiness: 503 while nodes are missing or the gateway is shutting down."""
    service = service_of(request)
    retry = {"Retry-After": str(RETRY_AFTER_S)}
    if service.admission.is_draining:
        raise Refusal(503, "The gateway is shutting down.", code="draining", headers=retry)
    if gaps := service.head.gaps:
        missing = " ".join(
            f"No node serves layers {place.link.facts.start} to {place.link.facts.stop - 1} now. The last one was "
            f"{place.link.name}: {describe_error(place.error)}"
            for place in gaps
            if place.error is not None
        )
        raise Refusal(503, missing, code="unavailable", headers=retry)
    return JSONResponse({"status": "ok", "model": service.model_names[0], "answers": service.admission.num})


@router.get("/health", summary="Whether requests are answered (same as /health/ready)")
async def health(request: Request) -> JSONResponse:
    """The same as /health/ready."""
    return await ready(request)


@router.get("/version", summary="The gateway's version")
async def version() -> dict[str, str]:
    """The version, in vLLM's shape."""
    return {"version": __version__}


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus counters and gauges of the head and of the stages that run in its process."""
    content: Any = service_of(request).metrics.text()
    return Response(content, media_type=CONTENT_TYPE_LATEST)
