"""Addresses of nodes, from the command line, the environment, or nodes.toml, which may change while a head runs."""

from __future__ import annotations

import ipaddress
import os
import socket
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shardhub.address import Address
from shardhub.errors import AddressError, UsageError
from shardhub.listening import own_addresses
from shardhub.naming import NODE_PORT
from shardhub.node.peers import DEFAULT_PEERS, Network
from shardhub.shard import Pipeline

NODE_OPTION = "`nodes`"
NEIGHBOUR_OPTION = "`neighbours`"
NODES_VARIABLE = "SHARDHUB_NODES"
NODES_FILE = "nodes.toml"
# Before a name that stands for one node at each of its addresses, as a headless Service of Kubernetes does.
EACH = "dns+"


def node_addresses(options: Sequence[str] | str | None, pipeline: Pipeline) -> list[str]:
    """Addresses of nodes: --node, or SHARDHUB_NODES (separated by commas), or nodes.toml here or at the pipeline.

    Raises:
        UsageError: An address is not valid, or nodes.toml is not `nodes = ["host:port", ...]`.
    """
    if options:
        return _checked([options] if isinstance(options, str) else options, NODE_OPTION)
    if text := os.environ.get(NODES_VARIABLE, "").strip():
        return _in_variable(text)
    file = nodes_file(options, pipeline)
    return read_nodes_file(file) if file is not None else []


def neighbour_addresses(given: Sequence[str], *, own: Address | None = None, has_others: bool = True) -> list[str]:
    """Addresses of other nodes of the cluster: SHARDHUB_NODES, or nodes.toml here, then --neighbour.

    Args:
        given: Those of --neighbour.
        own: Where this node listens; it is left out.
        has_others: Whether those of SHARDHUB_NODES or nodes.toml count too.

    Raises:
        UsageError: As `node_addresses`.
    """
    addresses: list[str] = []
    path = Path(NODES_FILE).absolute()
    if not has_others:
        pass
    elif text := os.environ.get(NODES_VARIABLE, "").strip():
        addresses = _in_variable(text)
    elif path.is_file():
        addresses = read_nodes_file(path)
    merged = dict.fromkeys([*addresses, *_checked(given, NEIGHBOUR_OPTION)])
    return [address for address in merged if own is None or not _is_own(Address.parse(address), own)]


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """The networks that a node may dial; private ones if none are named.

    Raises:
        UsageError: A text is not a network.
    """
    if not texts:
        return DEFAULT_PEERS
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise UsageError(f"`peers`: {error}.", hint="Write a network such as 192.168.1.0/24.") from error


def nodes_file(options: Sequence[str] | str | None, pipeline: Pipeline) -> Path | None:
    """The nodes.toml that names the nodes; None if --node or SHARDHUB_NODES does, or if no such file exists.

    If only files that the manifest names may be read, the one in the pipeline's folder is ignored: it is never named.
    """
    if options or os.environ.get(NODES_VARIABLE, "").strip():
        return None
    folders = [Path(), pipeline.folder] if pipeline.only_named is None else [Path()]
    paths = (folder / NODES_FILE for folder in folders)
    return next((path.absolute() for path in paths if path.is_file()), None)


def read_nodes_file(path: Path) -> list[str]:
    """Read the addresses in a nodes.toml.

    Raises:
        UsageError: The file is not `nodes = ["host:port", ...]`, or cannot be read.
    """
    hint = f'Write: nodes = ["192.168.1.7", "studio.local:{NODE_PORT}"]'
    try:
        addresses = tomllib.loads(path.read_text(encoding="utf-8")).get("nodes")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path} cannot be read.", why=f"{error}.", hint=hint) from error
    if not isinstance(addresses, list):
        why = "It does not contain a line `nodes = [...]`." if addresses is None else "Its `nodes` is not a list."
        raise UsageError(f"{path} does not list any nodes.", why=why, hint=hint)
    return _checked(addresses, str(path))


def _in_variable(text: str) -> list[str]:
    return _checked([part.strip() for part in text.split(",") if part.strip()], NODES_VARIABLE)


def has_changing(addresses: Sequence[str] | str | None) -> bool:
    """Whether the addresses that a user gave may stand for other nodes later: one is `dns+NAME`."""
    given = [addresses] if isinstance(addresses, str) else addresses or os.environ.get(NODES_VARIABLE, "").split(",")
    return any(text.strip().startswith(EACH) for text in given)


def each_address(address: Address) -> list[str]:
    """The addresses behind a name, of one family: IPv4 if it has any, as a node may be reached by both.

    A name that has none, as of pods that do not run yet, is returned as it is: whoever dials it says so.
    """
    try:
        resolved = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        return [str(address)]
    families = {family: [info[4][0] for info in resolved if info[0] == family] for family, *_ in resolved}
    hosts = families.get(socket.AF_INET) or families.get(socket.AF_INET6) or [address.host]
    return [str(Address(str(host), address.port)) for host in sorted(set(hosts), key=str)]


def _is_own(address: Address, own: Address) -> bool:
    """Whether an address leads to this node: its port, on this machine."""
    if address.port != own.port:
        return False
    if address.host == own.host:
        return True
    try:
        hosts = {str(info[4][0]) for info in socket.getaddrinfo(address.host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    is_any = own.host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
    return bool(hosts & set(own_addresses())) if is_any else own.host in hosts


def _checked(texts: Sequence[Any], where: str) -> list[str]:
    addresses: list[str] = []
    for text in texts:
        try:
            text = text if isinstance(text, str) else ""
            address = Address.parse(text.strip().removeprefix(EACH), port=NODE_PORT)
            addresses += each_address(address) if text.strip().startswith(EACH) else [str(address)]
        except AddressError as error:
            if where in (NODE_OPTION, NEIGHBOUR_OPTION) and "," in text:
                raise UsageError(
                    f"{where}: {error.what}",
                    why="It contains a comma.",
                    hint=f"Give each node on its own: {where} HOST:PORT {where} HOST:PORT",
                ) from error
            raise UsageError(
                f"{where}: {text!r} is not HOST:PORT.",
                hint=f"Write it like 192.168.1.7:{NODE_PORT}, or 192.168.1.7 for that port.",
            ) from error
    if len(set(addresses)) != len(addresses):
        twice = next(address for address in addresses if addresses.count(address) > 1)
        raise UsageError(f"{where}: {twice} is given twice.", hint="Give each node once.")
    return addresses
