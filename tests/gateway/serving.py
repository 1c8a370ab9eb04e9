"""Real gateways for tests: `shardhub gateway` in processes of their own, over real nodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests import nodes


class GatewayProcess(nodes.Announced):
    """A `shardhub gateway` process that is ready.

    Args:
        pipeline: Its folder, or those of several.
        addresses: Of nodes.
        options: More options.
        num_files: How many it may open, if not as many as this process.
    """

    def __init__(
        self,
        pipeline: Path | Sequence[Path],
        addresses: list[str],
        options: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        num_files: int | None = None,
    ) -> None:
        named = [part for address in addresses for part in ("--node", address)]
        folders = [pipeline] if isinstance(pipeline, Path) else pipeline
        super().__init__("gateway", *folders, *named, *options, env=env, num_files=num_files)
        self.wait_ready()

    @property
    def url(self) -> str:
        return str(self.ready["url"])
