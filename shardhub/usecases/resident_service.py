"""Installing the resident as a service, so that it starts with the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from shardhub.errors import AccessError, NodeFailure, UsageError
from shardhub.resident.units import (
    LABEL,
    UNIT,
    Installation,
    Service,
    launchd_installation,
    systemd_installation,
)
from shardhub.usecases.cluster_place import ClusterPlace
from shardhub.usecases.resident import ResidentSettings
from shardhub.usecases.resident_process import resident_words, stop_resident
from shardhub.whole_files import write_whole

# Variables that change what the resident and its nodes do, and that a service does not inherit. Tokens are left out:
# the file may be readable by others, and `hf auth login` keeps one for the user.
_CARRIED = ("SHARDHUB_STATE", "SHARDHUB_TLS", "SHARDHUB_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HOME")
_COMMAND_S = 60.0
# Exit code of a shell for a program that does not exist.
_NOT_THERE = 127

# Runs a command; returns its exit code, and what it said.
Runner = Callable[[Sequence[str]], tuple[int, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceManager:
    """The service manager of this machine, and who asks it.

    Attributes:
        system: `Linux` or `Darwin`.
        is_root: Whether this process may install for the whole machine.
        user: Whose the resident is.
        home: That user's home.
    """

    system: str
    is_root: bool
    user: str
    home: Path

    @property
    def file(self) -> Path:
        """The file that it reads."""
        if self.system == "Darwin":
            return Path("/Library/LaunchDaemons") / f"{LABEL}.plist"
        if self.is_root:
            return Path("/etc/systemd/system") / UNIT
        return self.home / ".config" / "systemd" / "user" / UNIT


def this_manager() -> ServiceManager:
    """The service manager of this machine, for the user who runs this, or who ran `sudo`."""
    user = os.environ.get("SUDO_USER") or psutil.Process().username()
    is_root = os.geteuid() == 0
    home = Path(f"~{user}").expanduser() if is_root else Path.home()
    return ServiceManager(system=platform.system(), is_root=is_root, user=user, home=home)


def service_of(settings: ResidentSettings, manager: ServiceManager, environment: dict[str, str]) -> Service:
    """The service that runs a resident with these settings."""
    carried = {name: environment[name] for name in _CARRIED if environment.get(name)}
    place = settings.place
    named = {"SHARDHUB_STATE": place.state, "SHARDHUB_TLS": place.tls}
    carried |= {name: str(path.absolute()) for name, path in named.items() if path is not None}
    if manager.is_root:
        carried["HOME"] = str(manager.home)
    return Service(
        command=(sys.executable, "-m", "shardhub", *resident_words(settings)),
        log=place.folder.log.absolute(),
        user=manager.user if manager.is_root or manager.system == "Darwin" else None,
        environment=carried,
    )


def installation_for(service: Service, manager: ServiceManager) -> Installation:
    """What makes the service on this machine.

    Raises:
        UsageError: The system has no service manager that is known.
        AccessError: Only root may install it.
    """
    if manager.system == "Darwin":
        if not manager.is_root:
            raise AccessError(
                "Only root may install a daemon that starts before anybody logs in.",
                why=f"It is written to {manager.file.parent}, and runs as {manager.user}.",
                hint=f"Run the same with sudo: sudo {sys.executable} -m shardhub resident install",
            )
        return launchd_installation(service, daemons=manager.file.parent)
    if manager.system == "Linux":
        return systemd_installation(service, is_system=manager.is_root, units=manager.file.parent, user=manager.user)
    raise UsageError(
        f"Services of {manager.system} are not supported.", hint="Start it by hand: shardhub resident start"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A service that was installed.

    Attributes:
        path: Its file.
        remark: What a person should know; empty if nothing.
    """

    path: Path
    remark: str = ""


def install_resident(
    settings: ResidentSettings, *, manager: ServiceManager | None = None, run: Runner | None = None
) -> Installed:
    """Have this machine's resident start with the machine, and start it now.

    Args:
        manager, run: The service manager, and what runs its commands; this machine's by default.

    Raises:
        UsageError: There is no service manager.
        AccessError: Only root may install it, or its file cannot be written.
        NodeFailure: The service manager refuses.
    """
    used, call = manager or this_manager(), run or run_command
    installation = installation_for(service_of(settings, used, dict(os.environ)), used)
    # What an earlier installation runs is ended first; without one, this only shows whether there is a manager.
    code, _ = call(installation.unload[0])
    if code == _NOT_THERE:
        raise UsageError(
            f"This machine has no {installation.unload[0][0]}.",
            why="The resident cannot be made a service here, as in most containers.",
            hint="Start it by hand, or from what starts this machine: shardhub resident run",
        )
    stop_resident(settings.place, keep_nodes=True)
    try:
        installation.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(installation.path, installation.data)
    except OSError as error:
        raise AccessError(
            f"{installation.path} cannot be written.", why=f"{error.strerror}.", hint="Run the same with sudo."
        ) from error
    remarks = [installation.remark] if installation.remark else []
    for command in installation.load:
        code, said = call(command)
        if code and command[0] == "loginctl":  # without it the service runs while this user is logged in
            remarks.append(
                f"It starts when {used.user} logs in, because `{' '.join(command)}` failed: {said.strip()[:200]}. Run "
                "that with sudo, and it starts with the machine."
            )
        elif code:
            raise NodeFailure(
                "The service could not be started.",
                why=f"`{' '.join(command)}` ended with {code}: {said.strip()[:300]}",
                hint=f"Its file is {installation.path}. Remove it: shardhub resident uninstall",
            )
    return Installed(path=installation.path, remark=" ".join(remarks))


def uninstall_resident(
    place: ClusterPlace, *, manager: ServiceManager | None = None, run: Runner | None = None
) -> Path | None:
    """End the service, the resident and its nodes; returns the file that was removed, if there was one.

    Raises:
        AccessError: Only root may remove it.
    """
    used, call = manager or this_manager(), run or run_command
    removed = None
    if used.file.exists():
        installation = installation_for(service_of(ResidentSettings(place=place), used, {}), used)
        for command in installation.unload[:1]:
            call(command)
        try:
            used.file.unlink()
        except OSError as error:
            raise AccessError(
                f"{used.file} cannot be removed.", why=f"{error.strerror}.", hint="Run the same with sudo."
            ) from error
        for command in installation.unload[1:]:
            call(command)
        removed = used.file
    stop_resident(place)
    return removed


def installed_file(manager: ServiceManager | None = None) -> Path | None:
    """The file of this machine's service; None if none is installed."""
    used = manager or this_manager()
    candidates = [used.file, ServiceManager(system=used.system, is_root=True, user=used.user, home=used.home).file]
    return next((path for path in candidates if path.exists()), None)


def run_command(command: Sequence[str]) -> tuple[int, str]:
    """Run a command of the service manager."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _NOT_THERE, str(error)
    return done.returncode, done.stderr or done.stdout
