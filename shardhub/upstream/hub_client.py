"""huggingface_hub: parts of its client that have no public name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi


def hub_headers(api: HfApi) -> dict[str, str]:
    """Headers of the client's own requests: its user agent, and its token if it has one."""
    headers: dict[str, str] = api._build_hf_headers()
    return headers


def use_http_client(make: Callable[[], httpx2.Client]) -> None:
    """Have the client make its HTTP client with a function.

    `set_client_factory` closes the HTTP client in use, also under the requests of other threads: if the function is set
    already, nothing is done.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    if _http._GLOBAL_CLIENT_FACTORY is not make:
        set_client_factory(make)


def request_hook() -> Callable[[httpx2.Request], object]:
    """The hook that the client applies to each request, for an HTTP client that replaces its own."""
    from huggingface_hub.utils._http import hf_request_event_hook

    return hf_request_event_hook


def has_xet() -> bool:
    """Whether the client uploads over Xet by default."""
    from huggingface_hub.utils._runtime import is_xet_available

    return is_xet_available()


def use_lfs(operation: CommitOperationAdd, *, is_uploaded: bool = False) -> None:
    """Upload a file through LFS, whatever the repo's `.gitattributes` say.

    Args:
        is_uploaded: Whether the repo has its bytes already, so that none are sent. `HfApi.preupload_lfs_files` leaves
            an operation in the same state after an upload.
    """
    operation._upload_mode = "lfs"
    operation._should_ignore = False
    if is_uploaded:
        operation._is_uploaded = True
