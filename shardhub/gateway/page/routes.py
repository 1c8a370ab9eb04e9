"""GET / and GET /page/...: the page's files from the package, with headers that let it load nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

ASSETS = Path(__file__).parent / "assets"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Cached and revalidated each time, so that an update of the gateway shows at once.
    "Cache-Control": "no-cache",
}
# Browsers run a module only under its correct media type, which a system's table may have wrong.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One file of the page."""

    content: bytes
    type: str
    etag: str


@cache
def assets() -> dict[str, Asset]:
    """The page's files by their paths. No other file is served, whatever the requested path."""
    assets_by_path: dict[str, Asset] = {}
    for path in sorted(ASSETS.rglob("*")):
        if path.suffix in _TYPES and path.is_file():
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            assets_by_path[path.relative_to(ASSETS).as_posix()] = Asset(
                content=content, type=_TYPES[path.suffix], etag=etag
            )
    return assets_by_path


@router.get("/")
async def page(request: Request) -> Response:
    """Serve the page."""
    return _answer("index.html", request)


@router.get("/favicon.ico")
async def icon(request: Request) -> Response:
    """Serve the icon, which browsers request on their own."""
    return _answer("icon.svg", request)


@router.get("/page/{path:path}")
async def file(path: str, request: Request) -> Response:
    """Serve a file of the page."""
    return _answer(path, request)


def _answer(path: str, request: Request) -> Response:
    asset = assets().get(path)
    if asset is None:
        raise HTTPException(404)
    headers = HEADERS | {"ETag": asset.etag}
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.type, headers=headers)
