"""Ports of gRPC servers: whether one is free, who has it, and how it is taken."""

from __future__ import annotations

import errno
import os
import socket

import grpc
import grpc.aio
import psutil

from shardhub.address import Address
from shardhub.errors import AddressError
from shardhub.listening import own_addresses
from shardhub.security.trust import Trust
from shardhub.wire.secure import server_credentials


def check_free(host: str, port: int) -> None:
    """Check that a server can listen at a port.

    Raises:
        AddressError: It cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise AddressError(
                    f"Cannot listen on {Address(host, port)}.",
                    why=f"{host} is not an address of this machine, whose addresses are {', '.join(own_addresses())}.",
                    hint="Give one of those with `host`, or 0.0.0.0 for all of them.",
                ) from error
            raise AddressError(
                f"Cannot listen on {Address(host, port)}.",
                why=f"{error.strerror}{_owner(port)}.",
                hint="Choose another port with `port`, or 0 for any free one.",
            ) from error


def bind(server: grpc.aio.Server, host: str, port: int, trust: Trust | None) -> int:
    """Have a server listen at a port, with TLS if there is trust; returns the port.

    Raises:
        AddressError: It cannot listen there.
    """
    check_free(host, port)  # gRPC reports a port in use only by a log line and a RuntimeError
    try:
        address = str(Address(host, port))
        if trust is not None:
            return int(server.add_secure_port(address, server_credentials(trust)))
        return int(server.add_insecure_port(address))
    except RuntimeError as error:
        raise AddressError(f"Cannot listen on {Address(host, port)}.", why=f"{error}.") from error


def _owner(port: int) -> str:
    """Describe the process that listens on a port, if this user may see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid == os.getpid():
                    return ": this process is using it"
                return f": process {connection.pid} is using it" if connection.pid else ""
    except (psutil.Error, OSError):
        return ""
    return ""
