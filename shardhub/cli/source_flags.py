"""The options that name the Hub a model is read from."""

from __future__ import annotations

from typing import Annotated

import typer

from shardhub.cli.flags import flags


@flags("Where the model is read from")
class SourceHubFlags:
    """The Hub that the model is on."""

    source_endpoint: Annotated[
        str | None,
        typer.Option(
            "--source-endpoint",
            help="Hub that the model is on; by default HF_ENDPOINT's. Its token: SHARDHUB_SOURCE_TOKEN.",
            metavar="URL",
        ),
    ] = None
