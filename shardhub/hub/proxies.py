"""Which requests to the Hub go through a proxy: as the environment says, but never those to the local network."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import sys
import threading
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass

from shardhub.errors import UsageError
from shardhub.hub.cluster_trust import ClusterAuthority, authority_for, cluster_context
from shardhub.hub.pace import require_pace
from shardhub.hub.retry import is_lasting

if TYPE_CHECKING:
    import httpx2

# Suffixes of names that exist only on the local network (RFC 6761, 6762, 8375).
_OWN_ENDINGS = (".localhost", ".local", ".home.arpa")
_HOST = re.compile(r"[\w.:-]+")
_SCHEMES = ("http", "https", "socks5", "socks5h")
# Addresses that networks such as Tailscale assign to their machines (RFC 6598).
_SHARED = ipaddress.ip_network("100.64.0.0/10")
# The scheme that desktop settings write for a SOCKS proxy of unknown version.
_SAME_SCHEMES = {"socks": "socks5"}


def proxy_for(scheme: str, host: str, port: int | None, proxies: Mapping[str, str]) -> str | None:
    """The proxy that a request goes through; None for a direct connection.

    Args:
        scheme, host, port: Parts of the request's URL.
        proxies: Proxies by scheme, as `urllib.request.getproxies` reads them; `all` is for any scheme, `no` holds the
            exceptions.
    """
    if is_own_network(host) or is_excepted(host, port, proxies.get("no", "")):
        return None
    return (proxies.get(scheme, "") or proxies.get("all", "")).strip() or None


def is_own_network(host: str) -> bool:
    """Whether a host can only be on this machine or the local network, which no proxy reaches."""
    name = host.strip("[]").rstrip(".").lower()
    address = _address(name)
    if address is not None:
        return address.is_private or address.is_link_local or address in _SHARED  # private includes loopback
    return "." not in name or name.endswith(_OWN_ENDINGS) or name == _own_name()


def is_excepted(host: str, port: int | None, exceptions: str) -> bool:
    """Whether NO_PROXY names a host: by domain (including subdomains), address or network, optionally with a port.

    Args:
        exceptions: Separated by commas or blanks; `*` names every host.
    """
    name = host.strip("[]").rstrip(".").lower()
    address = _address(name)
    for entry in exceptions.lower().replace(",", " ").split():
        if entry == "*":
            return True
        rule, colon, number = entry.rpartition(":")
        if colon and number.isdigit() and (":" not in rule or rule.endswith("]")):
            if int(number) != port:
                continue
        else:
            rule = entry
        rule = rule.rpartition("://")[2].strip("[]")
        if address is not None:
            try:
                if address in ipaddress.ip_network(rule, strict=False):
                    return True
            except ValueError:
                continue
        elif (plain := rule.removeprefix("*").strip(".")) and (name == plain or name.endswith(f".{plain}")):
            return True
    return False


def make_transport() -> httpx2.BaseTransport:
    """Make the transport for the Hub's requests: direct, or through the proxy that is set when a request is sent.

    Raises, when a request is sent:
        UsageError: The request would go through an unusable proxy.
    """
    import httpx2

    class Sending(httpx2.BaseTransport):
        def __init__(self) -> None:
            self._lock = threading.Lock()
            self._transports: dict[tuple[str | None, ClusterAuthority | None], httpx2.HTTPTransport] = {}

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            url = request.url
            proxy = proxy_of(url.scheme, url.host, url.port)
            authority = authority_for(url.scheme, url.host, url.port)
            with self._lock:
                transport = self._transports.get((proxy, authority))
                if transport is None:
                    verify = cluster_context(authority) if authority is not None else True
                    transport = self._transports[proxy, authority] = (
                        httpx2.HTTPTransport(verify=verify) if proxy is None else _through(proxy, url.scheme, verify)
                    )
            try:
                response = transport.handle_request(request)
            except (httpx2.NetworkError, httpx2.TimeoutException) as error:
                # The client would repeat each try of a listing by itself, for minutes; the parts of an upload it may.
                if request.method != "GET" and not is_lasting(error):
                    raise
                raise httpx2.TransportError(str(error), request=request) from error
            require_pace(response, request)
            return response

        def close(self) -> None:
            for transport in self._transports.values():
                transport.close()

    return Sending()


def proxy_of(scheme: str, host: str, port: int | None) -> str | None:
    """The proxy that this process's environment sets for a URL; None for a direct connection."""
    proxies = getproxies()
    # macOS and Windows have exceptions in their own settings.
    if sys.platform in ("darwin", "win32") and "no" not in proxies and proxy_bypass(host):
        return None
    return proxy_for(scheme, host, port, proxies)


def shown(proxy: str) -> str:
    """A proxy's scheme and address for messages, without the password that it may contain."""
    scheme, separator, rest = proxy.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2].partition('/')[0]}"


def _through(proxy: str, scheme: str, verify: ssl.SSLContext | bool) -> httpx2.HTTPTransport:
    """Make a transport through a proxy.

    Raises:
        UsageError: The proxy is unusable.
    """
    import httpx2

    name, separator, rest = proxy.partition("://")
    address = f"{_SAME_SCHEMES.get(name.lower(), name.lower())}://{rest}" if separator else f"http://{proxy}"
    hint = "Set it to http://HOST:PORT, unset it, or name the Hub's host in NO_PROXY."
    variable = f"{scheme.upper()}_PROXY or ALL_PROXY"
    try:
        options: Any = httpx2.Proxy(address)
        if options.url.scheme not in _SCHEMES or not _HOST.fullmatch(options.url.host):
            raise ValueError(f"{options.url.scheme!r} is not a proxy scheme, or the host is missing")
        return httpx2.HTTPTransport(proxy=options, verify=verify)
    except ImportError as error:
        raise UsageError(
            f"The proxy {shown(proxy)} speaks SOCKS, and the package for that is not installed.",
            why=f"It is set in the environment variable {variable}.",
            hint="Install it: pip install socksio; or use an HTTP proxy, or name the Hub's host in NO_PROXY.",
        ) from error
    except (ValueError, httpx2.InvalidURL) as error:
        raise UsageError(
            f"The proxy {shown(proxy)[:100]!r} cannot be used.",
            why=f"It is set in the environment variable {variable}. A proxy is HOST:PORT, or a URL with http, https "
            "or socks5.",
            hint=hint,
        ) from error


@cache
def _own_name() -> str:
    return socket.gethostname().rstrip(".").lower()


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None
