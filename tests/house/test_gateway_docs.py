"""docs/gateway.md names what `shardhub gateway` takes."""

from __future__ import annotations

import re
from pathlib import Path

from tests.nodes import shardhub

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "gateway.md").read_text()
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def test_each_option_of_the_gateway_is_described() -> None:
    """An option that `gateway --help` lists stands in the document, too."""
    options = set(OPTION.findall(shardhub("gateway", "--help", env={"COLUMNS": "200"}).stdout)) - {"--help"}
    assert options - set(OPTION.findall(TEXT)) == set()
