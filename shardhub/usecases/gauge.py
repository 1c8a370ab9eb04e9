"""The facts of this machine for its cluster: memory and disk now, and speeds, which are measured once."""

from __future__ import annotations

import asyncio
import logging
import platform
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from shardhub.clock import SYSTEM_CLOCK, Clock
from shardhub.engine.host import processor_name
from shardhub.errors import ResourceError, ShardhubError
from shardhub.hub.cache import default_cache
from shardhub.manifest import NumericClass, ShortText, Size, decode, encode
from shardhub.memory_limits import available_memory, installed_memory
from shardhub.parity import numeric_class
from shardhub.regular_files import read_file
from shardhub.resident.machine import MAX_ADDRESSES, MachineFacts, Report, Speed
from shardhub.resident.records import process_bytes
from shardhub.resident.words import switch
from shardhub.version import __version__
from shardhub.whole_files import write_whole

log = logging.getLogger(__name__)

MEASURED_FILE = "measured.json"
_MAX_BYTES = 64 << 10
# Share of installed memory and of what is free now that nodes may take, until the device has named its own.
_SHARE, _FREE_SHARE = 0.75, 0.9
# Facts that change are read at most so often.
_FRESH_S = 1.0
# A slow machine loads MLX and measures for half a minute.
_MEASURE_S = 300.0


class MeasuredMachine(Report):
    """What `measure` finds: facts and speeds that stay.

    Attributes:
        versions: Versions and memory that the facts belong to; with others, the machine is measured again.
        budget_bytes: Memory that nodes may take if nothing else runs.
    """

    kind: Literal["shardhub-measured-machine"] = "shardhub-measured-machine"
    format_version: Literal[1] = 1
    versions: Annotated[str, Field(max_length=300)]
    chip: ShortText
    backend: ShortText
    numeric_class: NumericClass
    budget_bytes: Size
    read_bytes_per_s: Speed
    read_dense_bytes_per_s: Speed
    step_s: Speed


def measure(folder: Path) -> MeasuredMachine:
    """Measure this machine, and keep the result for its resident; loads MLX, and takes some seconds.

    Args:
        folder: Where the resident keeps it.

    Raises:
        ResourceError: It cannot be kept.
    """
    from shardhub.engine.host import host_facts
    from shardhub.model.memory import memory_budget
    from shardhub.selftest.speeds import measure_speeds

    host, budget = host_facts(), memory_budget()
    speeds = measure_speeds(budget)
    measured = MeasuredMachine(
        versions=measured_versions(),
        chip=_printable(host["cpu"] or host["chip"]),
        backend=host["backend"],
        numeric_class=numeric_class(host),
        budget_bytes=budget,
        read_bytes_per_s=speeds.read_gb_per_s * 1e9,
        read_dense_bytes_per_s=speeds.read_dense_gb_per_s * 1e9,
        step_s=speeds.step_ms / 1000,
    )
    try:
        write_whole(folder / MEASURED_FILE, encode(measured))
    except OSError as error:
        raise ResourceError(
            "The measurement cannot be kept.", why=f"{folder / MEASURED_FILE}: {error.strerror}."
        ) from error
    return measured


class MachineGauge:
    """Measures the machine for its resident; the slow part runs in a process of its own, which loads MLX.

    Args:
        name, role: Of this machine.
        addresses: Where its resident may be reached.
        folder: Where what was measured is kept.
        node_pids: The processes of this machine's nodes.
        cache: The folder of weights.
    """

    def __init__(
        self,
        name: str,
        role: Literal["member", "node"],
        folder: Path,
        *,
        addresses: Callable[[], Iterable[str]],
        node_pids: Callable[[], Iterable[int]],
        cache: Path | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._path = folder / MEASURED_FILE
        self._addresses = addresses
        self._node_pids = node_pids
        self._cache = cache or default_cache()
        self._clock = clock
        self._read_at = float("-inf")
        self._facts = MachineFacts(
            name=name,
            role=role,
            boot_id=secrets.token_hex(8),
            shardhub=__version__,
            mlx=_version("mlx"),
            mlx_lm=_version("mlx-lm"),
            system=platform.system(),
            chip=_printable(processor_name()),
            memory_bytes=installed_memory(),
        )

    @property
    def facts(self) -> MachineFacts:
        """The machine now."""
        if self._clock.now() - self._read_at >= _FRESH_S:
            self._read_at = self._clock.now()
            self._facts = self._facts.model_copy(update=self._read())
        return self._facts

    async def measure(self, measured: Callable[[], None]) -> None:
        """Measure what stays, unless that was done before; a failure is logged.

        Args:
            measured: Called when it is done.
        """
        if self._kept() is not None:
            return
        command = [sys.executable, "-m", "shardhub", "resident", "measure", *switch("json", True)]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
        )
        try:
            async with self._clock.timeout(_MEASURE_S):
                if await process.wait():
                    log.warning("this machine could not be measured: `shardhub resident measure` says why")
        except TimeoutError:
            log.warning("this machine was not measured within %.0f s", _MEASURE_S)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        measured()

    def _read(self) -> dict[str, object]:
        held = sum(map(process_bytes, self._node_pids()))
        now = int(available_memory() * _FREE_SHARE) + held
        measured = self._kept()
        most = int(self._facts.memory_bytes * _SHARE) if measured is None else measured.budget_bytes
        facts: dict[str, object] = {
            "budget_bytes": min(most, now),
            "disk_free_bytes": _free_bytes(self._cache),
            "addresses": tuple(self._addresses())[:MAX_ADDRESSES],
        }
        if measured is not None:
            same = ("chip", "backend", "numeric_class", "read_bytes_per_s", "read_dense_bytes_per_s", "step_s")
            facts |= {name: getattr(measured, name) for name in same}
        return facts

    def _kept(self) -> MeasuredMachine | None:
        try:
            kept = decode(MeasuredMachine, read_file(self._path, _MAX_BYTES), where=str(self._path))
        except (OSError, ShardhubError):
            return None
        return kept if kept.versions == measured_versions() else None


def measured_versions() -> str:
    """What a measurement depends on."""
    names = ("mlx", "mlx-lm")
    parts = [f"{name} {_version(name)}" for name in names]
    return ", ".join([*parts, platform.platform(), f"{installed_memory()} bytes"])[:300]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _printable(text: str) -> str:
    """A name as documents hold it."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)[:200]


def _free_bytes(folder: Path) -> int:
    """Free bytes of the file system of a folder that may not exist yet."""
    for place in (folder, *folder.parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return 0
