"""Advice for an address that nothing answers at."""

from __future__ import annotations

import errno
import platform

# The words of gRPC, and what asyncio writes instead of them.
_NO_ROUTE = ("no route to host", f"[errno {errno.EHOSTUNREACH}]")
NO_NODE_HINT = (
    "Check the address, and that `shardhub serve` runs there. Unless it was given an address to listen on, it listens "
    "on 127.0.0.1, which only its own machine can reach."
)
_LOCAL_NETWORK = (
    "macOS also answers this where a program may not use the local network: allow the terminal (or Python) in System "
    "Settings, Privacy & Security, Local Network, or run the command in Terminal or over ssh."
)


def unreachable_hint(fault: str, *, hint: str = NO_NODE_HINT, system: str | None = None) -> str:
    """Advice after a connection failed.

    macOS refuses a program that may not use the local network with "No route to host", as if the machine were away.

    Args:
        fault: The system's text about the failure.
        hint: Advice for every system.
        system: `platform.system()` of this machine; None asks for it.
    """
    is_mac = (platform.system() if system is None else system) == "Darwin"
    has_no_route = any(words in fault.lower() for words in _NO_ROUTE)
    return f"{hint} {_LOCAL_NETWORK}" if is_mac and has_no_route else hint
