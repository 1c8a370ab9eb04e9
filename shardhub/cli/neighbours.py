"""The option that names neighbours."""

from __future__ import annotations

from typing import Annotated

import typer

Neighbours = Annotated[
    list[str] | None,
    typer.Option(
        "--neighbour",
        help="Node to ask for weight files before the Hub, beside those of SHARDHUB_NODES or nodes.toml; repeatable.",
        metavar="HOST:PORT",
    ),
]
