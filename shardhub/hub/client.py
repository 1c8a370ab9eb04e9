"""Making the Hub's client, with its endpoint, token, user agent and timeouts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from shardhub.errors import UsageError
from shardhub.hub.cluster_trust import name_hub
from shardhub.hub.proxies import make_transport
from shardhub.upstream.hub_client import request_hook, use_http_client
from shardhub.version import __version__

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

# The client itself sets no timeout. Source: default_client_factory, huggingface_hub 2.4.0.
CONNECT_TIMEOUT_S = 10.0
# Seconds between two bytes of an answer. Commits of thousands of files take the Hub longest.
READ_TIMEOUT_S = 60.0
# The token of the Hub that a model is read from, where that is another than the environment's.
SOURCE_TOKEN_VARIABLE = "SHARDHUB_SOURCE_TOKEN"  # noqa: S105  # a name
_TRUE = {"1", "on", "yes", "true"}


def hub_api(endpoint: str | None = None, token: str | Literal[False] | None = None) -> HfApi:
    """Make the Hub's client.

    Args:
        endpoint: URL of the Hub; HF_ENDPOINT by default, else the public one.
        token: HF_TOKEN by default, else the one that `hf auth login` saved; False sends none.

    Raises:
        UsageError: The endpoint is not a URL.
    """
    from huggingface_hub import HfApi, constants

    # Read here as well, because the client reads the variable only once, on import.
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        raise UsageError(
            f"{endpoint!r} is not the URL of a Hub.",
            hint="Set HF_ENDPOINT to one that starts with https:// or http://, or leave it unset.",
        )
    name_hub(endpoint)
    use_http_client(make_http_client)
    return HfApi(endpoint=endpoint, token=token, library_name="shardhub", library_version=__version__)


def token_variable(api: HfApi) -> str:
    """The variable that sets the token of a client of a Hub."""
    return SOURCE_TOKEN_VARIABLE if api.token is False or _has_source_token(api) else "HF_TOKEN"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids using the network."""
    from huggingface_hub import constants

    return constants.is_offline_mode() or os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE


def token_source(api: HfApi) -> str:
    """Where the token in use comes from, for messages; never the token itself."""
    from huggingface_hub import get_token

    if _has_source_token(api):
        return f"the token in {SOURCE_TOKEN_VARIABLE}"
    if isinstance(api.token, str):
        return "the token given to this command"
    if api.token is False or get_token() is None:
        return "no token"
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return "the token in HF_TOKEN"
    return "the token saved by `hf auth login`"


def _has_source_token(api: HfApi) -> bool:
    return isinstance(api.token, str) and api.token == os.environ.get(SOURCE_TOKEN_VARIABLE)


def make_http_client(transport: httpx2.BaseTransport | None = None) -> httpx2.Client:
    """Make the underlying HTTP client: as huggingface_hub does, with timeouts and without redirects to plain http.

    Args:
        transport: Sends the requests; by default that of `proxies.make_transport`.
    """
    import httpx2

    return httpx2.Client(
        transport=transport or make_transport(),
        event_hooks={"request": [request_hook()], "response": [_refuse_downgrade]},
        follow_redirects=True,
        timeout=httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
    )


def _refuse_downgrade(response: httpx2.Response) -> None:
    """Refuse a redirect from https to http: tokens are never sent to another host, but the content needs https too."""
    import httpx2

    if response.has_redirect_location and response.request.url.scheme == "https":
        target = response.request.url.join(response.headers["Location"])
        if target.scheme != "https":
            raise httpx2.UnsupportedProtocol(
                f"{response.request.url.host} redirects to {target.host or 'itself'} without encryption.",
                request=response.request,
            )
