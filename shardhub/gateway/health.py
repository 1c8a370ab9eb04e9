"""Health, readiness, version and metrics of the gateway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from shardhub.chain.failures import describe_error
from shardhub.gateway.metrics import metrics_text
from shardhub.gateway.refusals import RETRY_AFTER_S, Refusal
from shardhub.gateway.served_models import models_of
from shardhub.gateway.service import Service
from shardhub.version import __version__

router = APIRouter(tags=["health"])


@router.get("/health/live", summary="Whether the process answers")
async def live() -> dict[str, str]:
    """Liveness: 200 as long as the process answers."""
    return {"status": "ok"}


@router.get("/health/ready", summary="Whether requests are answered")
async def ready(request: Request, model: str | None = None) -> JSONResponse:
    """Readiness: 503 while no model can be used, or the one that `model` names, or the gateway is shutting down."""
    models = models_of(request)
    retry = {"Retry-After": str(RETRY_AFTER_S)}
    if models.is_draining:
        raise Refusal(503, "The gateway is shutting down.", code="draining", headers=retry)
    services = models.services if model is None else models.named(model)
    usable = [service for service in services if not service.head.gaps]
    if not usable:
        missing = " ".join(filter(None, map(_missing, services))) or models.reason
        raise Refusal(503, missing, code="unavailable", headers=retry)
    answers = sum(service.admission.num for service in services)
    states = {chain.name: {"status": "unavailable", "reason": chain.reason} for chain in models.absent.values()}
    states |= {name: _state(models.named(name)) for name in models.names}
    return JSONResponse({"status": "ok", "model": usable[0].model_names[0], "answers": answers, "models": states})


@router.get("/health", summary="Whether requests are answered (same as /health/ready)")
async def health(request: Request, model: str | None = None) -> JSONResponse:
    """The same as /health/ready."""
    return await ready(request, model)


@router.get("/version", summary="The gateway's version")
async def version() -> dict[str, str]:
    """The version, in vLLM's shape."""
    return {"version": __version__}


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus counters and gauges of each chain and of its stages that run in this process, by model and chain."""
    return Response(metrics_text(models_of(request).all_services), media_type=CONTENT_TYPE_LATEST)


def _state(services: Sequence[Service]) -> dict[str, Any]:
    """Whether a model's chains can answer, and how many answers they run."""
    usable = [service for service in services if not service.head.gaps]
    state: dict[str, Any] = {
        "status": "ok" if usable else "unavailable",
        "answers": sum(service.admission.num for service in services),
        "chains": len(services),
        "usable_chains": len(usable),
    }
    if missing := " ".join(filter(None, map(_missing, services))):
        state["reason"] = missing
    return state


def _missing(service: Service) -> str:
    """The layers of a chain that no node serves now."""
    return " ".join(
        f"No node serves layers {place.link.facts.start} to {place.link.facts.stop - 1} now. The last one was "
        f"{place.link.name}: {describe_error(place.error)}"
        for place in service.head.gaps
        if place.error is not None
    )
