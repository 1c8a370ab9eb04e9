"""Addresses of nodes: from the command line, the environment, or nodes.toml, which may change while a head runs."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shardhub.errors import UsageError
from shardhub.shard import Pipeline

NODES_VARIABLE = "SHARDHUB_NODES"
NODES_FILE = "nodes.toml"


def node_addresses(options: Sequence[str] | None, pipeline: Pipeline) -> list[str]:
    """Addresses of nodes: --node, else SHARDHUB_NODES (separated by commas), else nodes.toml here or at the pipeline.

    Raises:
        UsageError: An address has no port, or nodes.toml is not `nodes = ["host:port", ...]`.
    """
    if options:
        return _checked(options, "--node")
    if text := os.environ.get(NODES_VARIABLE, "").strip():
        return _checked([part.strip() for part in text.split(",") if part.strip()], NODES_VARIABLE)
    file = nodes_file(options, pipeline)
    return read_nodes_file(file) if file is not None else []


def nodes_file(options: Sequence[str] | None, pipeline: Pipeline) -> Path | None:
    """The nodes.toml that names the nodes; None where --node or SHARDHUB_NODES does, or there is none.

    Where only what the manifest names may be read of the pipeline, the one beside it is left out: no manifest names it.
    """
    if options or os.environ.get(NODES_VARIABLE, "").strip():
        return None
    folders = [Path(), pipeline.folder] if pipeline.only_named is None else [Path()]
    paths = (folder / NODES_FILE for folder in folders)
    return next((path.absolute() for path in paths if path.is_file()), None)


def read_nodes_file(path: Path) -> list[str]:
    """Addresses that a nodes.toml names.

    Raises:
        UsageError: It is not `nodes = ["host:port", ...]`, or cannot be read.
    """
    try:
        addresses = tomllib.loads(path.read_text(encoding="utf-8"))["nodes"]
    except (tomllib.TOMLDecodeError, KeyError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path} names no nodes.", why=f"{error}.", hint='Write: nodes = ["host:port"]') from error
    if not isinstance(addresses, list):
        raise UsageError(f"{path} names no nodes.", why="`nodes` is no list.", hint='Write: nodes = ["host:port"]')
    return _checked(addresses, str(path))


def _checked(addresses: Sequence[Any], where: str) -> list[str]:
    for address in addresses:
        if not isinstance(address, str) or not address.rpartition(":")[2].isdigit() or not address.rpartition(":")[0]:
            raise UsageError(f"{where}: {address!r} is no HOST:PORT.", hint="Write it like 192.168.1.7:50051.")
    if len(set(addresses)) != len(addresses):
        twice = next(address for address in addresses if addresses.count(address) > 1)
        raise UsageError(f"{where}: {twice} is named twice.", hint="Name each node once.")
    return list(addresses)
