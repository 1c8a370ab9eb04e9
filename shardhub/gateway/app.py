"""The gateway as an ASGI application."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from shardhub.errors import ShardhubError
from shardhub.gateway import (
    chat,
    completions,
    docs,
    embeddings,
    feed,
    health,
    messages,
    models,
    ollama,
    ollama_models,
    responses,
    stored_responses,
    tokens,
)
from shardhub.gateway.page import routes as page
from shardhub.gateway.refusals import Refusal, refusal_of, refusal_of_fields
from shardhub.gateway.request_check import RequestCheck
from shardhub.gateway.schema import ErrorBody, OllamaErrorBody
from shardhub.gateway.served_models import EndOfUses, ServedModels
from shardhub.version import __version__

log = logging.getLogger(__name__)

_STATUSES: tuple[int | str, ...] = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 502, 503, 504)


def build_app(served: ServedModels) -> FastAPI:
    """The application that serves models, without the check in front of it."""
    app = FastAPI(
        title="shardhub gateway",
        version=__version__,
        description="OpenAI's API, and the core of Anthropic's and Ollama's, over chains of nodes.",
        docs_url=None,  # FastAPI's own page loads its scripts from another site
        redoc_url=None,
        redirect_slashes=False,  # the check has normalised the path already
        # With a default, FastAPI does not document its own 422, which is never sent.
        responses=_errors(ErrorBody),
        exception_handlers={
            Refusal: _answer_refusal,
            ShardhubError: _answer_error,
            RequestValidationError: _answer_invalid,
            HTTPException: _answer_http,
            Exception: _answer_fault,
        },
    )
    app.state.models = served
    app.state.feeds = feed.Feeds(served)
    apis = (
        chat,
        completions,
        responses,
        stored_responses,
        messages,
        embeddings,
        models,
        tokens,
    )
    for module in (*apis, health, feed, docs, page):
        app.include_router(module.router)
    for module in (ollama, ollama_models):
        app.include_router(module.router, responses=_errors(OllamaErrorBody))
    return app


def guarded(app: FastAPI) -> ASGIApp:
    """The application behind the check of every request."""
    served: ServedModels = app.state.models
    settings = served.settings
    return RequestCheck(
        EndOfUses(app),
        keys=settings.keys,
        hosts=(settings.host, *settings.names),
        any_address=settings.host in ("0.0.0.0", "::"),  # noqa: S104 - compared, not bound
        origins=settings.origins,
        stall_s=settings.stall_s,
    )


def _errors(body: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The error responses that the OpenAPI description lists for a route."""
    return {status: {"model": body} for status in (*_STATUSES, "default")}


async def _answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response(request.url.path)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ShardhubError)
    return refusal_of(error).response(request.url.path)


async def _answer_invalid(request: Request, error: Exception) -> Response:
    """Answer 400 to a body that is not JSON or has an invalid field, and name the field."""
    assert isinstance(error, RequestValidationError)
    return refusal_of_fields(error.errors()).response(request.url.path)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, Refusal):  # raised while FastAPI read the body
        return error.__cause__.response(request.url.path)
    message = error.detail if isinstance(error.detail, str) else "The request cannot be served."
    if error.status_code == 404:
        message = f"This gateway does not serve {request.method} {request.url.path[:200]}."
        if not request.url.path.startswith("/v1/"):
            message += " The API is under /v1/, which is part of a client's base URL."
    return Refusal(error.status_code, message, headers=error.headers).response(request.url.path)


async def _answer_fault(request: Request, error: Exception) -> Response:
    """Answer 500 to an internal error: the log has the details, the client gets none of them."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return Refusal(500, "An unexpected error occurred.", code="internal_error").response(request.url.path)
