"""The resident as a service: what systemd and launchd read, and what is done to install it."""

from __future__ import annotations

import plistlib
import sys
from pathlib import Path

import pytest

from shardhub.errors import AccessError, FormatError, NodeFailure, UsageError
from shardhub.resident.units import Service, launchd_daemon, systemd_unit
from shardhub.usecases.cluster_place import ClusterPlace
from shardhub.usecases.resident import ResidentSettings
from shardhub.usecases.resident_service import (
    ServiceManager,
    install_resident,
    installation_for,
    installed_file,
    service_of,
    uninstall_resident,
)

SERVICE = Service(
    command=("/opt/my shardhub/bin/python", "-m", "shardhub", "resident", "run", "--seed", "10.0.0.1:50047"),
    log=Path("/var/lib/shard 100%/resident.log"),
    user="ann",
    environment={"SHARDHUB_STATE": "/var/lib/$state", "HOME": "/home/ann"},
)


class Manager:
    """A service manager that notes what it is asked, and fails at some commands."""

    def __init__(self, *failing: str) -> None:
        self.asked: list[str] = []
        self._failing = failing

    def __call__(self, command) -> tuple[int, str]:
        self.asked.append(" ".join(command))
        return (1, "refused") if command[0] in self._failing else (0, "")


@pytest.fixture
def manager(tmp_path):
    return ServiceManager(system="Linux", is_root=False, user="ann", home=tmp_path)


@pytest.fixture
def settings(tmp_path):
    return ResidentSettings(place=ClusterPlace(state=tmp_path / "state"))


def test_a_unit_is_quoted_as_systemd_reads_it():
    """Spaces, percent signs and dollars in paths stay what they are; nodes are not killed with the resident."""
    text = systemd_unit(SERVICE, is_system=True)
    assert 'ExecStart="/opt/my shardhub/bin/python" -m shardhub resident run --seed 10.0.0.1:50047\n' in text
    assert 'Environment="SHARDHUB_STATE=/var/lib/$$state"\n' in text
    assert "StandardOutput=append:/var/lib/shard 100%%/resident.log\n" in text
    assert "\nUser=ann\n" in text
    assert "\nKillMode=process\n" in text
    assert "\nWantedBy=multi-user.target\n" in text


def test_a_users_own_unit_names_no_user():
    """The user's own manager runs it as that user."""
    text = systemd_unit(SERVICE, is_system=False)
    assert "User=" not in text
    assert "\nWantedBy=default.target\n" in text


def test_a_line_break_does_not_add_a_line_to_a_unit():
    """A variable with a line break is refused."""
    with pytest.raises(FormatError, match="control character"):
        systemd_unit(Service(command=("a", "b\nUser=root"), log=Path("/log")), is_system=True)


def test_a_daemon_starts_before_a_login_as_its_user():
    """launchd gets a property list that Python's own reader reads; it leaves the nodes alone."""
    daemon = plistlib.loads(launchd_daemon(SERVICE))
    assert daemon["ProgramArguments"] == list(SERVICE.command)
    assert (daemon["RunAtLoad"], daemon["KeepAlive"]) == (True, {"SuccessfulExit": False})
    assert (daemon["UserName"], daemon["AbandonProcessGroup"]) == ("ann", True)
    assert daemon["StandardErrorPath"] == str(SERVICE.log)
    assert daemon["EnvironmentVariables"]["HOME"] == "/home/ann"
    assert "LimitLoadToSessionType" not in daemon


def test_the_service_runs_this_installation(manager, settings, tmp_path, monkeypatch):
    """It has the settings and folders of whoever installs it, and no token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://10.0.0.9:8090")
    run = Manager()
    installed = install_resident(settings, manager=manager, run=run)
    assert installed.path == tmp_path / ".config/systemd/user/shardhub-resident.service"
    text = installed.path.read_text()
    assert f"{sys.executable} -m shardhub resident run --port 50047\n" in text
    assert f"Environment=SHARDHUB_STATE={tmp_path / 'state'}\n" in text
    assert "Environment=HF_ENDPOINT=http://10.0.0.9:8090\n" in text
    assert "hf_secret" not in text
    ended = "systemctl --user disable --now shardhub-resident.service"
    assert run.asked == [
        ended,
        "systemctl --user daemon-reload",
        "loginctl enable-linger ann",
        "systemctl --user enable --now shardhub-resident.service",
    ]
    assert installed_file(manager) == installed.path
    assert uninstall_resident(settings.place, manager=manager, run=run) == installed.path
    assert not installed.path.exists()
    assert run.asked[4:] == [ended, "systemctl --user daemon-reload"]


def test_what_the_manager_refuses_is_said(manager, settings):
    """A service that starts only with a login is installed, with a remark; one that does not start is an error."""
    assert "logs in" in install_resident(settings, manager=manager, run=Manager("loginctl")).remark
    with pytest.raises(NodeFailure, match="refused"):
        install_resident(settings, manager=manager, run=Manager("systemctl"))


def test_a_machine_without_a_service_manager_is_told_what_to_do(manager, settings):
    """Nothing is written there."""
    with pytest.raises(UsageError, match="has no systemctl") as caught:
        install_resident(settings, manager=manager, run=lambda command: (127, ""))
    assert "shardhub resident run" in caught.value.hint
    assert not manager.file.exists()


def test_a_mac_needs_root_for_a_daemon(settings, tmp_path):
    """Without it the command to type is said; with it the daemon runs as the user, not as root."""
    user = ServiceManager(system="Darwin", is_root=False, user="ann", home=tmp_path)
    with pytest.raises(AccessError, match="sudo"):
        installation_for(service_of(settings, user, {}), user)
    root = ServiceManager(system="Darwin", is_root=True, user="ann", home=tmp_path)
    installation = installation_for(service_of(settings, root, {}), root)
    daemon = plistlib.loads(installation.data)
    assert (daemon["UserName"], daemon["EnvironmentVariables"]["HOME"]) == ("ann", str(tmp_path))
    assert installation.path == Path("/Library/LaunchDaemons/dev.shardhub.resident.plist")
    assert installation.load == (("launchctl", "bootstrap", "system", str(installation.path)),)
    assert "Local Network" in installation.remark
