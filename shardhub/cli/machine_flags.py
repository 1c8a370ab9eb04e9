"""How a machine's resident is started by the commands that form a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shardhub.cli.flags import flags
from shardhub.naming import RESIDENT_PORT

if TYPE_CHECKING:
    from shardhub.usecases.resident import ResidentSettings

# In help and in what commands print; see `shardhub resident install`.
_AFTER_REBOOT = "It ends when this machine is rebooted. To have it start then:  shardhub resident install"


NoDiscovery = Annotated[
    bool,
    typer.Option(
        "--no-discovery",
        help="Neither announce this machine on the local network nor look for others there: seeds lead to them.",
    ),
]


@flags("Resident")
class StartFlags:
    """Where the resident listens, and whom it calls."""

    host: Annotated[
        str | None, typer.Option(help="Address on which the resident and its nodes listen; all of them by default.")
    ] = None
    port: Annotated[int, typer.Option(help="Port of the resident; 0 takes a free one.", min=0, max=65535)] = (
        RESIDENT_PORT
    )
    seed: Annotated[
        list[str] | None,
        typer.Option(
            help="Address of a machine of the cluster, where others are not found; repeatable.", metavar="HOST"
        ),
    ] = None

    no_discovery: NoDiscovery = False

    service: Annotated[
        bool, typer.Option("--service", help="Start the resident with this machine from now on: systemd or launchd.")
    ] = False

    def settings(self, *, seeds: Sequence[str] = ()) -> ResidentSettings:
        """The same for the library.

        Args:
            seeds: Further addresses, HOST:PORT.
        """
        from shardhub.address import Address
        from shardhub.usecases.resident import ResidentSettings

        named = [str(Address.parse(text, port=RESIDENT_PORT)) for text in self.seed or ()]
        return ResidentSettings(
            host=self.host,
            port=self.port,
            seeds=tuple(dict.fromkeys([*named, *seeds])),
            is_discovered=not self.no_discovery,
        )

    def start(self, *, seeds: Sequence[str] = ()) -> str:
        """Leave a resident running; returns what a person should know of it.

        Args:
            seeds: As for `settings`.
        """
        from shardhub.cli.terminal import Terminal
        from shardhub.usecases.forming import start_resident

        service = start_resident(self.settings(seeds=seeds), Terminal(), as_service=self.service)
        if service is None:
            return f"The resident runs in the background (shardhub resident status). {_AFTER_REBOOT}"
        return f"The resident starts with this machine: {service.path}. {service.remark}".strip()
