"""docs/gateway.md names the options of `shardhub gateway`."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import FastAPI

from shardhub.gateway import messages
from tests.nodes import shardhub

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "gateway.md").read_text()
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def test_each_option_of_the_gateway_is_described() -> None:
    """Every option that `gateway --help` lists is in the document."""
    options = set(OPTION.findall(shardhub("gateway", "--help", env={"COLUMNS": "200"}).stdout)) - {"--help"}
    assert options - set(OPTION.findall(TEXT)) == set()


def test_description_of_the_routes_is_made_without_a_warning() -> None:
    """Each operation of /openapi.json has a unique id: FastAPI would otherwise write a warning to the gateway's log."""
    app = FastAPI()
    app.include_router(messages.router)
    assert "/v1/messages" in app.openapi()["paths"]
