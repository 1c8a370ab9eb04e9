"""Ollama's routes about models: they describe those that are served and refuse changes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from shardhub.gateway.ollama_lines import line
from shardhub.gateway.ollama_schema import OllamaName
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.served_models import MODEL_NOT_FOUND, models_of, service_of
from shardhub.gateway.service import Service
from shardhub.gateway.strict import StrictRoute
from shardhub.version import __version__

router = APIRouter(tags=["ollama"], route_class=StrictRoute)

# The version whose API is implemented: clients check it before they use tools or thinking.
OLLAMA_VERSION = "0.12.6"
_LATEST = ":latest"
_BILLION = 1_000_000_000
# When the model is unloaded: it stays as long as the gateway runs.
_NEVER = "2318-01-01T00:00:00Z"


@router.get("/api/version", summary="The version of Ollama's API")
async def version() -> dict[str, str]:
    """Report Ollama's version and shardhub's."""
    return {"version": OLLAMA_VERSION, "shardhub": __version__}


@router.get("/api/tags", summary="List models, for Ollama's clients")
async def tags(request: Request) -> dict[str, Any]:
    """List each model under each of its names."""
    return {"models": [_entry(service, name) for service, name in _named(request)]}


@router.get("/api/ps", summary="List models in memory")
async def running(request: Request) -> dict[str, Any]:
    """List the loaded models: all that are served."""
    return {
        "models": [
            _entry(service, name)
            | {"expires_at": _NEVER, "size_vram": _size_bytes(service), "context_length": service.max_context}
            for service, name in _named(request)
        ]
    }


@router.post("/api/show", summary="Describe a model")
async def show(body: OllamaName, request: Request) -> dict[str, Any]:
    """Describe the model: its template, its sizes and its capabilities."""
    service = ollama_service(request, body.model_name)
    tokenizer = service.head.tokenizer
    config = _config(service)
    family = _family(config)
    sampling = {name: getattr(service.defaults, name) for name in ("temperature", "top_p", "top_k")}
    return {
        "modelfile": f"FROM {service.model_names[0]}",
        "parameters": "\n".join(f"{name} {value}" for name, value in sampling.items()),
        "template": tokenizer.chat_template or "",
        "license": "",
        "details": _details(service),
        "model_info": {
            "general.architecture": family,
            "general.basename": service.head.pipeline.manifest.name,
            "general.parameter_count": _num_parameters(service),
            f"{family}.context_length": service.max_context,
            f"{family}.block_count": service.head.pipeline.manifest.num_layers,
            f"{family}.embedding_length": config.get("hidden_size"),
            f"{family}.vocab_size": service.vocab_size,
        },
        "capabilities": _capabilities(service),
        "modified_at": _modified_at(service),
    }


@router.post("/api/pull", summary="Pull a model: only those served")
async def pull(body: OllamaName, request: Request) -> Response:
    """Report success for a model that is served. Nothing is ever fetched for a client."""
    try:
        ollama_service(request, body.model_name)
    except Refusal as refusal:
        raise _refused("pulled") from refusal
    if body.stream is False:
        return JSONResponse({"status": "success"})
    content = line({"status": "pulling manifest"}) + line({"status": "success"})
    return Response(content, media_type="application/x-ndjson")


@router.post("/api/push", include_in_schema=False)
@router.post("/api/create", include_in_schema=False)
@router.post("/api/copy", include_in_schema=False)
@router.delete("/api/delete", include_in_schema=False)
@router.post("/api/blobs/{name}", include_in_schema=False)
async def change(request: Request) -> Response:
    """Refuse changes of models, which the operator makes with `shardhub`."""
    raise _refused("changed")


@router.get("/api/blobs/{name}", include_in_schema=False)
async def blob(name: str) -> Response:
    """Answer 404: there are no blobs."""
    raise Refusal(404, "This gateway does not store blobs.")


def ollama_service(request: Request, name: str) -> Service:
    """The service that handles a request, by the model's name with or without a tag.

    Raises:
        Refusal: The model is not served. The message is Ollama's, which clients look for.
    """
    is_whole = name in models_of(request).names
    try:
        return service_of(request, name if is_whole else name.removesuffix(_LATEST))
    except Refusal as refusal:
        if refusal.code != MODEL_NOT_FOUND:
            raise
        raise Refusal(404, f"model '{name[:200]}' not found", code=MODEL_NOT_FOUND) from refusal


def _refused(done: str) -> Refusal:
    return Refusal(
        403, f"Models cannot be {done} through this gateway. Its operator does so with the shardhub command."
    )


def _named(request: Request) -> list[tuple[Service, str]]:
    """The models' names, each with a chain that serves it and with the tag that Ollama's clients expect."""
    models = models_of(request)
    return [(models.named(name)[0], name if ":" in name else name + _LATEST) for name in models.names]


def _entry(service: Service, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": _modified_at(service),
        "size": _size_bytes(service),
        "digest": service.head.pipeline.manifest.pipeline_id,
        "details": _details(service),
        "capabilities": _capabilities(service),
    }


def _details(service: Service) -> dict[str, Any]:
    config = _config(service)
    family = _family(config)
    bits = _bits(config)
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": f"{_num_parameters(service) / _BILLION:.1f}B",
        "quantization_level": f"Q{bits}" if bits < 16 else f"F{bits}",
    }


def _capabilities(service: Service) -> list[str]:
    capabilities = ["completion"]
    if service.call_formats.own:
        capabilities.append("tools")
    if service.segmenters.thinks:
        capabilities.append("thinking")
    if service.infill is not None:
        capabilities.append("insert")
    return capabilities


def _config(service: Service) -> dict[str, Any]:
    """The model's config.json, which was validated before the gateway started."""
    config: dict[str, Any] = json.loads((service.head.pipeline.documents / "config.json").read_bytes())
    return config


def _family(config: dict[str, Any]) -> str:
    return str(config.get("model_type") or "unknown")


def _bits(config: dict[str, Any]) -> int:
    """Bits of a weight, for most weights."""
    quantization = config.get("quantization")
    if isinstance(quantization, dict) and isinstance(quantization.get("bits"), int):
        return int(quantization["bits"])
    return 32 if config.get("torch_dtype", config.get("dtype")) == "float32" else 16


def _num_parameters(service: Service) -> int:
    """The approximate number of parameters, from the size of the weights."""
    return _size_bytes(service) * 8 // _bits(_config(service))


def _size_bytes(service: Service) -> int:
    return sum(stage.size_bytes for stage in service.head.pipeline.manifest.stages)


def _modified_at(service: Service) -> str:
    return datetime.fromtimestamp(service.created, UTC).isoformat().replace("+00:00", "Z")
