"""Paths as clients, proxies and probes write them, in the form the routes have."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

# What clients ask for whose base URL lacks the /v1 of OpenAI's and Anthropic's APIs.
_WITHOUT_V1 = re.compile(
    r"/(chat/completions|completions|responses|messages|models|embeddings|images|audio|moderations|rerank|score)(/.*)?"
)
# What stands at the root, for clients whose base URL has a /v1 too many.
_AT_ROOT = re.compile(r"/v1/(api|tokenize|detokenize|tokenizer_info|health|metrics|version|ping)(/.*)?")
# Names of health checks elsewhere.
_PROBES = {"/healthz": "/health", "/readyz": "/health/ready", "/livez": "/health/live", "/ping": "/health"}


def plain_path(path: str) -> str:
    """The path of a route: without doubled or trailing slashes, with one /v1 where it belongs."""
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
    """The host and the path of a request's target; proxies are sent whole URLs, others a path alone.

    Source: RFC 9112, section 3.2: a host in the target counts in the place of the Host header's.
    """
    if not target.lower().startswith(("http://", "https://")):
        return None, target
    try:
        parts = urlsplit(target)
    except ValueError:
        return "", "/"
    return parts.netloc, parts.path or "/"
