"""Checks whether this machine is ready to split, serve and publish, each with its finding and advice."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardhub.blas import Blas, blas_path, carries_reference_blas, describe_blas, load_openblas
from shardhub.errors import ShardhubError
from shardhub.hub.cache import Cache
from shardhub.hub.client import hub_api, is_offline, token_source
from shardhub.hub.failures import hub_failures
from shardhub.naming import NODE_PORT
from shardhub.requirements import this_machine, unfitness
from shardhub.sizes import size_text
from shardhub.toolchain import check_compiler
from shardhub.upstream.hub_client import hub_headers
from shardhub.usecases.versions import versions

OK, WARN, FAIL = "ok", "warn", "fail"

_OLDEST_PYTHON = (3, 11)
# Below this a single large stage does not fit.
_LITTLE_DISK_BYTES = 20 * 10**9
_LITTLE_MEMORY_BYTES = 4 * 10**9
# Timeout of the Hub: the checks should be quick, and a slower Hub counts as unreachable.
_HUB_TIMEOUT_S = 5.0
# Pattern of a Hub's token, which the report must not contain.
_TOKEN = re.compile(r"hf_[A-Za-z0-9_]{8,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of a check.

    Attributes:
        state: `ok`, `warn` (something will not work, or not well) or `fail` (nothing will work).
        finding: What the check shows.
        advice: What to do; empty if nothing is to be done.
    """

    name: str
    state: str
    finding: str
    advice: str = ""


def report_text(checks: list[Check]) -> str:
    """All results as text to paste into an issue, without token, account or home folder."""
    lines = ["```", f"{platform.system()} {platform.release()} {platform.machine()}", *versions().splitlines(), ""]
    results = [f"{check.state:<5} {check.name:<9} {check.finding}" for check in checks]
    text = "\n".join([*lines, *results, "```"]).replace(str(Path.home()), "~")
    return _TOKEN.sub("hf_...", text)


def checks_of(cache_dir: Path | None, blas: Blas) -> list[Callable[[], list[Check]]]:
    # BLAS before MLX: the first import of MLX decides.
    return [
        _python,
        _compiler,
        lambda: [check_blas(blas)],
        _mlx,
        _memory,
        lambda: [check_disk(Cache(cache_dir).root)],
        _ports,
        _hub,
    ]


def _python() -> list[Check]:
    finding = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < _OLDEST_PYTHON:
        return [Check(name="python", state=FAIL, finding=finding, advice="Install Python 3.11 or later.")]
    return [Check(name="python", state=OK, finding=finding)]


def _compiler() -> list[Check]:
    if platform.system() != "Linux":
        return [Check(name="compiler", state=OK, finding="not needed on this system")]
    try:
        check_compiler()
    except ShardhubError as error:
        return [Check(name="compiler", state=FAIL, finding=error.what, advice=error.hint)]
    return [Check(name="compiler", state=OK, finding=str(shutil.which("g++")))]


def check_blas(choice: Blas) -> Check:
    """Check which BLAS MLX computes with; loads the one that `serve` would."""
    missing: ShardhubError | None = None
    if choice is Blas.OPENBLAS or (choice is Blas.AUTO and carries_reference_blas()):
        try:
            load_openblas()
        except ShardhubError as error:
            missing = error
    try:
        import mlx.core as mx
    except (ImportError, OSError) as error:
        return Check(name="blas", state=WARN, finding=f"{type(error).__name__}", advice="See mlx below.")
    if platform.system() == "Darwin":
        return Check(name="blas", state=OK, finding="Accelerate")
    finding = f"{describe_blas(mx.__file__)}: {blas_path(mx.__file__)}"
    if missing is not None:
        state = FAIL if choice is Blas.OPENBLAS else WARN
        return Check(
            name="blas",
            state=state,
            finding=f"{finding} (slow): {missing.what} {missing.why}",
            advice=missing.hint,
        )
    return Check(name="blas", state=OK, finding=f"{finding}, by `blas`" if choice is Blas.REFERENCE else finding)


def _mlx() -> list[Check]:
    advice = "Install it again: pip install --force-reinstall shardhub"
    try:
        import mlx.core as mx

        total = (mx.arange(4) * 2).sum().item()
    except (ImportError, OSError, RuntimeError) as error:
        if reason := unfitness(this_machine()):
            return [Check(name="mlx", state=FAIL, finding="cannot be installed on this machine", advice=reason)]
        return [Check(name="mlx", state=FAIL, finding=f"{type(error).__name__}: {error}"[:200], advice=advice)]
    if total != 12:
        return [Check(name="mlx", state=FAIL, finding=f"computes 0+2+4+6 = {total}", advice=advice)]
    backend = "Metal" if mx.metal.is_available() else "CUDA" if _has_cuda(mx) else "CPU"
    if backend == "CPU" and sys.platform == "darwin":
        advice = "Use a native arm64 Python on Apple silicon, not one under Rosetta."
        return [Check(name="mlx", state=WARN, finding="CPU only, on a Mac", advice=advice)]
    return [Check(name="mlx", state=OK, finding=f"{backend}, {mx.default_device()}")]


def _has_cuda(mx: Any) -> bool:
    cuda = getattr(mx, "cuda", None)
    return bool(cuda is not None and cuda.is_available())


def _memory() -> list[Check]:
    try:
        import mlx.core as mx
        import psutil

        from shardhub.memory_limits import available_memory, limit_text
        from shardhub.model.memory import memory_budget
    except (ImportError, OSError, RuntimeError) as error:
        return [Check(name="memory", state=WARN, finding=f"{type(error).__name__}", advice="See mlx above.")]
    installed = int(psutil.virtual_memory().total)
    is_metal = mx.metal.is_available()
    return [check_memory(memory_budget(), installed, available_memory(), limit_text(), is_metal=is_metal)]


def check_memory(budget: int, installed: int, free: int, limit: str, *, is_metal: bool) -> Check:
    """Check how much memory a node may take, in bytes, and how much is free now.

    Args:
        limit: The process's limit, in words.
        is_metal: Whether Metal decides the budget.
    """
    source = ", as Metal recommends" if is_metal else ""
    finding = (
        f"{size_text(budget)} for a node{source}, of {size_text(installed)} installed; "
        f"{size_text(free)} free now" + (f"; {limit}" if limit else "")
    )
    if free < min(_LITTLE_MEMORY_BYTES, budget // 2):
        advice = "Quit programs that you do not need before you serve."
        return Check(name="memory", state=WARN, finding=finding, advice=advice)
    return Check(name="memory", state=OK, finding=finding)


def check_disk(folder: Path) -> Check:
    """Check that the cache is writable and has room."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        advice = "Make it writable, or give another folder with `cache_dir` or SHARDHUB_CACHE."
        return Check(name="disk", state=FAIL, finding=f"the cache {folder} cannot be written", advice=advice)
    free = shutil.disk_usage(existing).free
    finding = f"{size_text(free)} free for the cache in {folder}"
    if free < _LITTLE_DISK_BYTES:
        advice = "Free some space (shardhub prune), or give another folder with `cache_dir` or SHARDHUB_CACHE."
        return Check(name="disk", state=WARN, finding=finding, advice=advice)
    return Check(name="disk", state=OK, finding=finding)


def _ports() -> list[Check]:
    return [check_port(NODE_PORT)]


def check_port(port: int) -> Check:
    """Check that a node could listen on a port."""
    # First all addresses at once, then each one: some systems let another process listen on a single address.
    for host in dict.fromkeys(("0.0.0.0", *_own_addresses())):  # noqa: S104 - nothing is answered there
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
            except OSError as error:
                place = "" if host == "0.0.0.0" else f" on {host}"  # noqa: S104
                advice = "A node may already be running. For another one: shardhub serve --port 0"
                fault = f"{port} cannot be used{place}: {error.strerror}"
                return Check(name="ports", state=WARN, finding=fault, advice=advice)
    return Check(name="ports", state=OK, finding=f"{port} is free")


def _own_addresses() -> list[str]:
    import psutil

    try:
        interfaces = psutil.net_if_addrs().values()
    except OSError:
        return ["127.0.0.1"]
    return [one.address for interface in interfaces for one in interface if one.family == socket.AF_INET]


def _hub() -> list[Check]:
    """Check whether the Hub answers, and what the token may do."""
    if is_offline():
        return [
            Check(name="hub", state=WARN, finding="HF_HUB_OFFLINE is set", advice="Unset it to fetch or publish."),
            Check(name="token", state=WARN, finding="not checked: offline"),
        ]
    try:
        api = hub_api()
        status, answer = _ask(api)
    except ShardhubError as error:
        return [
            Check(name="hub", state=WARN, finding=f"{error.what} {error.why}".strip(), advice=error.hint),
            Check(name="token", state=WARN, finding="not checked", advice="See hub above."),
        ]
    reached = Check(name="hub", state=OK, finding=f"{api.endpoint} answers")
    return [reached, token_check(status, answer, token_source(api))]


def token_check(status: int, answer: dict[str, Any], source: str) -> Check:
    """Check the token by the Hub's answer; never shows its value.

    Args:
        status: HTTP status of whoami; 401 for a missing or wrong token.
        answer: Body of the answer.
        source: Where the token came from.
    """
    if source == "no token":
        advice = "Enough for public models. To publish, or for private models, run `hf auth login` or set HF_TOKEN."
        return Check(name="token", state=WARN, finding="none", advice=advice)
    if status != 200:
        advice = "Log in again (hf auth login), or set HF_TOKEN to a token of this Hub."
        return Check(name="token", state=FAIL, finding=f"{source} is not accepted ({status})", advice=advice)
    token = (answer.get("auth") or {}).get("accessToken") or {}
    role = str(token.get("role", "unknown permissions"))
    if role == "read":
        advice = "Enough to fetch. To publish, create a token that can write."
        return Check(name="token", state=WARN, finding=f"{source}: read", advice=advice)
    if role == "fineGrained":
        granted = _granted(token)
        finding = f"{source}: fine-grained, {', '.join(sorted(granted)) or 'no permissions'}"
        if "repo.write" not in granted:
            advice = "To publish, give it write access to the contents of your repos."
            return Check(name="token", state=WARN, finding=finding, advice=advice)
        return Check(name="token", state=OK, finding=finding)
    return Check(name="token", state=OK, finding=f"{source}: {role}")


def _granted(token: dict[str, Any]) -> set[str]:
    scopes = (token.get("fineGrained") or {}).get("scoped") or []
    return {str(name) for scope in scopes if isinstance(scope, dict) for name in scope.get("permissions") or []}


def _ask(api: Any) -> tuple[int, dict[str, Any]]:
    """Call whoami once and return status and body.

    Raises:
        HubUnreachable: There is no answer, or it is not a Hub's.
    """
    from huggingface_hub import get_session

    with hub_failures("looking up the token's account", api=api):
        response = get_session().get(f"{api.endpoint}/api/whoami-v2", headers=hub_headers(api), timeout=_HUB_TIMEOUT_S)
        if response.status_code == 200:
            return 200, dict(response.json())
        if response.status_code >= 500 or response.status_code == 429:
            response.raise_for_status()
        if response.status_code != 401:
            # A Hub answers this call with 200 or 401; any other status comes from another server.
            response.json()
    return response.status_code, {}
