"""Pages for people, rendered from templates/hub: no scripts, no images, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from shardhub.localhub.history import Outline
from shardhub.localhub.repos import Repo
from shardhub.resources import resource
from shardhub.sizes import traffic_text

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere }
header { display: flex; justify-content: space-between; gap: 1rem }
header { padding-bottom: .5rem; border-bottom: 1px solid #8886 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { text-align: left; padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid #8883 }
.number { text-align: right; white-space: nowrap }
code, pre { font: 14px/1.4 ui-monospace, monospace }
pre { overflow: auto; padding: .75rem 1rem; border: 1px solid #8886; border-radius: .3rem; overflow-wrap: normal }
article { margin-top: 2rem; padding-top: 1rem; border-top: 1px solid #8886 }
small { opacity: .7 }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# Tags of cards that shardhub writes, and what the repo is.
_KINDS = {"shardhub-pipeline": "pipeline", "shardhub-shard": "shard"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoRow:
    """A repo in a list."""

    id: str
    url: str
    kind: str
    private: bool
    size: str
    changed: str


def render(template: str, *, base: str, user: str | None, title: str, **values: Any) -> str:
    """Render a page.

    Args:
        template: Its template in templates/hub.
        base: URL of the Hub.
        user: The reader, None if not signed in.
        title: Title of the page.
        values: What the template shows.
    """
    page = _environment().get_template(f"hub/{template}.html.j2")
    return page.render(base=base, user=user, title=title, style=Markup(_STYLE), **values)  # noqa: S704  # our own text


def kind_of(repo: Repo, tags: Sequence[str]) -> str:
    """What a repo is: pipeline, shard, model or dataset."""
    if repo.type != "model":
        return repo.type
    return next((kind for tag, kind in _KINDS.items() if tag in tags), "model")


def uses(repo: Repo, kind: str, base: str) -> list[str]:
    """The commands that use a repo, ready to be copied."""
    settings = f"export HF_ENDPOINT={base}" + (" HF_TOKEN=..." if repo.private else "")
    if kind == "shard":
        return [settings, f"shardhub serve {repo.id} --host ADDRESS"]
    if kind == "pipeline":
        return [
            settings,
            f"shardhub serve {repo.id} --host ADDRESS      # on each machine",
            f'shardhub generate --manifest {repo.id} --node ADDRESS --node ADDRESS --prompt "..."',
        ]
    if kind == "dataset":
        return [settings, f"hf download {repo.id} --repo-type dataset"]
    return [settings, f"hf download {repo.id}", f"shardhub split-and-push {repo.id} --stages 2"]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(resource("templates")),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
    )
    environment.filters["urlencode_segment"] = lambda text: quote(text, safe="")
    environment.filters["urlencode_path"] = lambda text: quote(text, safe="/")
    return environment


def row(repo: Repo, commit: Outline, tags: Sequence[str]) -> RepoRow:
    """Describe a repo for a list."""
    return RepoRow(
        id=repo.id,
        url=repo.url_path,
        kind=kind_of(repo, tags),
        private=repo.private,
        size=traffic_text(commit.size_bytes),
        changed=f"{commit.date[:16].replace('T', ' ')} UTC",
    )
