"""docs/gateway.md names what `shardhub gateway` takes."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import FastAPI

from shardhub.gateway import messages
from tests.nodes import shardhub

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "gateway.md").read_text()
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def test_each_option_of_the_gateway_is_described() -> None:
    """An option that `gateway --help` lists stands in the document, too."""
    options = set(OPTION.findall(shardhub("gateway", "--help", env={"COLUMNS": "200"}).stdout)) - {"--help"}
    assert options - set(OPTION.findall(TEXT)) == set()


def test_description_of_the_routes_is_made_without_a_warning() -> None:
    """Each operation of /openapi.json has an id of its own: FastAPI warns of others into the gateway's log."""
    app = FastAPI()
    app.include_router(messages.router)
    assert "/v1/messages" in app.openapi()["paths"]
