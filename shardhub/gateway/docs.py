"""GET /docs: the API as a page for people, made from the OpenAPI description, without scripts or external files."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_CSP = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
:root { color-scheme: light dark }
code, pre { font: 14px/1.4 ui-monospace, monospace } pre { overflow: auto; padding: 1rem; border: 1px solid #8886 }
h2 { font-size: 1.1rem; margin-top: 2rem } summary { cursor: pointer }
"""


@router.get("/docs", response_class=HTMLResponse)
async def docs(request: Request) -> HTMLResponse:
    """Show the routes, their fields and their answers."""
    schema: dict[str, Any] = request.app.openapi()
    parts = [f"<h1>{escape(schema['info']['title'])}</h1><p>{escape(schema['info']['description'])}</p>"]
    parts.append('<p>As a file: <a href="/openapi.json">/openapi.json</a></p>')
    models = schema.get("components", {}).get("schemas", {})
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts.append(
                f"<h2><code>{method.upper()} {escape(path)}</code> {escape(operation.get('summary', ''))}</h2>"
            )
            parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
            if (name := _body_name(operation)) in models:
                shown = json.dumps(models[name], indent=2)
                parts.append(f"<details><summary>Body: {escape(name)}</summary><pre>{escape(shown)}</pre></details>")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>shardhub gateway</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>"
    )
    return HTMLResponse(page, headers={"Content-Security-Policy": _CSP})


def _body_name(operation: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]
