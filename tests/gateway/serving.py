"""Real gateways for tests: `shardhub gateway` in processes of their own, over real nodes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from resource import RLIMIT_NOFILE, setrlimit

from tests import nodes


class GatewayProcess(nodes.Announced):
    """A `shardhub gateway` process that is ready.

    Args:
        pipeline: Its folder.
        addresses: Of nodes.
        options: More options.
        num_files: How many it may open, if not as many as this process.
    """

    def __init__(
        self,
        pipeline: Path,
        addresses: list[str],
        options: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        num_files: int | None = None,
    ) -> None:
        named = [part for address in addresses for part in ("--node", address)]
        limits = {} if num_files is None else {"preexec_fn": partial(setrlimit, RLIMIT_NOFILE, (num_files, num_files))}
        super().__init__("gateway", pipeline, *named, *options, env=env, **limits)
        self.wait_ready()

    @property
    def url(self) -> str:
        return str(self.ready["url"])
