"""The resident as a service: the texts that systemd and launchd read, and the commands that load them."""

from __future__ import annotations

import plistlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shardhub.errors import FormatError
from shardhub.resident.words import switch

UNIT = "shardhub-resident.service"
LABEL = "dev.shardhub.resident"
# Exits after which a start would fail again at once: usage, integrity, access.
_STAYING_EXITS = "2 3 4"
_RESTART_S = 5
# Nodes are left running, so that only calls in flight are waited for.
_STOP_S = 20
_FILES = 65536
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A resident that starts with the machine.

    Attributes:
        command: The program, with an absolute path, and its arguments.
        user: Whose it is; None where the service manager is that user's own.
        log: File that it appends to.
        environment: Variables that it needs.
    """

    command: Sequence[str]
    log: Path
    user: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What makes a service of a resident.

    Attributes:
        path: File for the service manager.
        data: Its contents.
        load, unload: Commands; of `unload`, those that fail are passed over.
        remark: What a person should know.
    """

    path: Path
    data: bytes
    load: tuple[tuple[str, ...], ...]
    unload: tuple[tuple[str, ...], ...]
    remark: str = ""


def systemd_unit(service: Service, *, is_system: bool) -> str:
    """The unit of a resident.

    Args:
        is_system: Whether the system's manager runs it, or the user's own.

    Raises:
        FormatError: A path or variable has a control character.
    """
    wanted_by = "multi-user.target" if is_system else "default.target"
    lines = [
        "[Unit]",
        "Description=shardhub resident",
        *(["Wants=network-online.target", "After=network-online.target"] if is_system else []),
        "",
        "[Service]",
        *([f"User={_plain(service.user)}"] if is_system and service.user is not None else []),
        f"ExecStart={' '.join(map(_quoted, service.command))}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in sorted(service.environment.items())),
        f"StandardOutput=append:{_plain(str(service.log)).replace('%', '%%')}",
        "StandardError=inherit",
        "Restart=on-failure",
        f"RestartSec={_RESTART_S}",
        f"RestartPreventExitStatus={_STAYING_EXITS}",
        "# Nodes go on without the resident, and the next one finds them.",
        "KillMode=process",
        f"TimeoutStopSec={_STOP_S}",
        f"LimitNOFILE={_FILES}",
        "",
        "[Install]",
        f"WantedBy={wanted_by}",
    ]
    return "\n".join(lines) + "\n"


def launchd_daemon(service: Service) -> bytes:
    """The property list of a daemon, which starts before anybody logs in."""
    daemon: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": list(service.command),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 10,
        "ExitTimeOut": _STOP_S,
        # Nodes go on without the resident, and the next one finds them.
        "AbandonProcessGroup": True,
        # Otherwise macOS slows the process down as soon as nobody uses the machine.
        "ProcessType": "Interactive",
        "StandardOutPath": str(service.log),
        "StandardErrorPath": str(service.log),
        "SoftResourceLimits": {"NumberOfFiles": _FILES},
        "EnvironmentVariables": dict(sorted(service.environment.items())),
    }
    if service.user is not None:
        daemon["UserName"] = service.user
    return plistlib.dumps(daemon)


def systemd_installation(service: Service, *, is_system: bool, units: Path, user: str) -> Installation:
    """What makes a systemd service of a resident.

    Args:
        is_system: Whether the system's manager runs it, or the user's own.
        units: The folder of units of that manager.
        user: Who installs it.
    """
    manager = ("systemctl", *switch("user", not is_system))
    # A user's manager ends with the last session and starts with the first, unless it lingers.
    linger = () if is_system else (("loginctl", "enable-linger", user),)
    return Installation(
        path=units / UNIT,
        data=systemd_unit(service, is_system=is_system).encode(),
        load=((*manager, "daemon-reload"), *linger, (*manager, "enable", "--now", UNIT)),
        unload=((*manager, "disable", "--now", UNIT), (*manager, "daemon-reload")),
    )


def launchd_installation(service: Service, *, daemons: Path) -> Installation:
    """What makes a launchd daemon of a resident.

    Args:
        daemons: The folder of daemons, which only root may write.
    """
    path = daemons / f"{LABEL}.plist"
    return Installation(
        path=path,
        data=launchd_daemon(service),
        load=(("launchctl", "bootstrap", "system", str(path)),),
        unload=(("launchctl", "bootout", f"system/{LABEL}"),),
        remark="macOS asks once whether shardhub may find devices on your local network: allow it in System Settings, "
        "Privacy & Security, Local Network. If the firewall is on, allow incoming connections for Python too.",
    )


def _quoted(word: str) -> str:
    """A word of a systemd command line. Source: systemd.service(5), command lines."""
    text = _plain(word).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if re.search(r"[^A-Za-z0-9_./:=@,+-]", text) else text


def _plain(text: str) -> str:
    if _CONTROL.search(text):
        raise FormatError(f"{text[:80]!r} cannot be part of a service.", why="It has a control character.")
    return text
