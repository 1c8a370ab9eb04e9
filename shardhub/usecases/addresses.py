"""Addresses of nodes: from the command line, the environment, or nodes.toml, which may change while a head runs."""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shardhub.errors import UsageError
from shardhub.naming import NODE_PORT
from shardhub.shard import Pipeline

NODE_OPTION = "--node"
NODES_VARIABLE = "SHARDHUB_NODES"
NODES_FILE = "nodes.toml"
_MAX_PORT = 65535
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})?")


def node_addresses(options: Sequence[str] | None, pipeline: Pipeline) -> list[str]:
    """Addresses of nodes: --node, else SHARDHUB_NODES (separated by commas), else nodes.toml here or at the pipeline.

    Raises:
        UsageError: An address is none, or nodes.toml is not `nodes = ["host:port", ...]`.
    """
    if options:
        return _checked(options, NODE_OPTION)
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
    hint = f'Write: nodes = ["192.168.1.7", "studio.local:{NODE_PORT}"]'
    try:
        addresses = tomllib.loads(path.read_text(encoding="utf-8")).get("nodes")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path} cannot be read.", why=f"{error}.", hint=hint) from error
    if not isinstance(addresses, list):
        why = "It has no line `nodes = [...]`." if addresses is None else "`nodes` is not a list."
        raise UsageError(f"{path} names no nodes.", why=why, hint=hint)
    return _checked(addresses, str(path))


def with_port(text: str, port: int = NODE_PORT) -> str | None:
    """`HOST:PORT` of an address that may leave its port out: a name, an IPv4 or an IPv6 address, in brackets or bare.

    Returns:
        The address; None where it is none.
    """
    host, colon, number = text.strip().rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        host, colon, number = text.strip(), "", ""  # an IPv6 address without brackets has no port
    elif not colon or number.endswith("]"):
        host, colon, number = text.strip(), "", ""
    if colon and not (number.isascii() and number.isdigit() and 0 < int(number) <= _MAX_PORT):
        return None
    if host.startswith("[") != host.endswith("]"):
        return None
    bare = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if ":" in bare:
        try:
            ipaddress.IPv6Address(bare)
        except ValueError:
            return None
        host = f"[{bare}]"
    elif not _HOST.fullmatch(bare) or host != bare:
        return None
    return f"{host}:{number or port}"


def _checked(texts: Sequence[Any], where: str) -> list[str]:
    addresses: list[str] = []
    for text in texts:
        address = with_port(text) if isinstance(text, str) else None
        if address is None and where == NODE_OPTION and "," in text:
            raise UsageError(
                f"{where}: {text!r} is not HOST:PORT.",
                why="It has a comma.",
                hint=f"Name each node with a {where} of its own.",
            )
        if address is None:
            raise UsageError(
                f"{where}: {text!r} is not HOST:PORT.",
                hint=f"Write it like 192.168.1.7:{NODE_PORT}, or 192.168.1.7 for that port.",
            )
        addresses.append(address)
    if len(set(addresses)) != len(addresses):
        twice = next(address for address in addresses if addresses.count(address) > 1)
        raise UsageError(f"{where}: {twice} is named twice.", hint="Name each node once.")
    return addresses
