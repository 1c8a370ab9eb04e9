"""Normalises the request paths of clients, proxies and probes to those of the routes."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

# Paths requested by clients whose base URL lacks the /v1 of OpenAI's and Anthropic's APIs.
_WITHOUT_V1 = re.compile(
    r"/(chat/completions|completions|responses|messages|models|embeddings|images|audio|moderations|rerank|score)(/.*)?"
)
# Routes at the root, for clients whose base URL has a superfluous /v1.
_AT_ROOT = re.compile(r"/v1/(api|tokenize|detokenize|tokenizer_info|health|metrics|version|ping)(/.*)?")
# Common names of health checks.
_PROBES = {"/healthz": "/health", "/readyz": "/health/ready", "/livez": "/health/live", "/ping": "/health"}


def plain_path(path: str) -> str:
    """Normalise a path: no doubled or trailing slashes, and one /v1 where the route has it."""
    path = re.sub(r"/{2,}", "/", path)
    if len(path) > 1:
        path = path.rstrip("/") or "/"
    path = re.sub(r"^(?:/v1){2,}(?=/|$)", "/v1", path)
    if _WITHOUT_V1.fullmatch(path):
        return f"/v1{path}"
    if _AT_ROOT.fullmatch(path):
        path = path.removeprefix("/v1")
    return _PROBES.get(path, path)


def split_target(target: str) -> tuple[str | None, str]:
    """Split a request's target into host and path. Proxies receive full URLs; otherwise the host is None.

    Source: RFC 9112, section 3.2: a host in the target replaces that of the Host header.
    """
    if not target.lower().startswith(("http://", "https://")):
        return None, target
    try:
        parts = urlsplit(target)
    except ValueError:
        return "", "/"
    return parts.netloc, parts.path or "/"
