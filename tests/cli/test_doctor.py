"""`shardhub doctor`."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from starlette.responses import HTMLResponse
from typer.testing import CliRunner

from shardhub.cli.app import app
from shardhub.localhub.server import RunningHub
from shardhub.usecases.doctor import Check, check_disk, check_memory, check_port, report_text, token_check
from tests.hub.pushing import Wire, pushing_hub


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningHub, Wire]]:
    with pushing_hub(tmp_path_factory.mktemp("hub")) as served:
        yield served


def doctor(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments], env=env)


def states(result: Result) -> dict[str, str]:
    return {check["name"]: check["state"] for check in json.loads(result.stdout)["checks"]}


def test_doctor_finds_a_machine_that_is_ready(served: tuple[RunningHub, Wire], tmp_path: Path) -> None:
    hub = served[0]
    result = doctor("--json", HF_ENDPOINT=hub.endpoint, HF_TOKEN=hub.token("ann"), SHARDHUB_CACHE=str(tmp_path))
    assert result.exit_code == 0, result.stderr
    states_by_name = states(result)
    assert list(states_by_name) == ["python", "compiler", "blas", "mlx", "memory", "disk", "ports", "hub", "token"]
    assert {states_by_name[name] for name in ("python", "compiler", "mlx", "hub", "token")} == {"ok"}


def test_doctor_fails_on_a_wrong_token_and_a_missing_compiler(served: tuple[RunningHub, Wire], tmp_path: Path) -> None:
    token = "hf_" + "0" * 64
    result = doctor(HF_ENDPOINT=served[0].endpoint, HF_TOKEN=token, SHARDHUB_CACHE=str(tmp_path), PATH=str(tmp_path))
    assert result.exit_code == 1
    assert "the token in HF_TOKEN is not accepted (401)" in result.stdout
    if sys.platform == "linux":
        assert "apt-get install g++" in result.stdout
    assert token not in result.stdout + result.stderr


def test_report_is_free_of_secrets(served: tuple[RunningHub, Wire], tmp_path: Path) -> None:
    hub = served[0]
    token = hub.token("secretname", role="read")
    result = doctor("--report", HF_ENDPOINT=hub.endpoint, HF_TOKEN=token, SHARDHUB_CACHE=str(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("```\n")
    for secret in (token, "secretname", str(Path.home())):
        assert secret not in result.stdout
    assert "mlx-lm " in result.stdout
    assert "read" in result.stdout


def test_report_hides_what_looks_like_a_token() -> None:
    check = Check(name="hub", state="warn", finding=f"proxy said hf_{'A' * 34} in {Path.home()}/x")
    assert f"hf_{'A' * 8}" not in report_text([check])
    assert str(Path.home()) not in report_text([check])


def test_doctor_warns_without_network_or_hub(served: tuple[RunningHub, Wire]) -> None:
    """A missing Hub, or a login page in its place, is only a warning, because folders can be served without one."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert states(doctor("--json", HF_ENDPOINT=endpoint))["hub"] == "warn"
    assert states(doctor("--json", HF_HUB_OFFLINE="1"))["hub"] == "warn"
    served[1].fault("GET", "/whoami", lambda _: HTMLResponse("<html>log in</html>"))
    result = doctor("--json", HF_ENDPOINT=served[0].endpoint)
    served[1].reset()
    assert states(result)["hub"] == "warn"
    assert "not a Hub" in result.stdout


@pytest.mark.parametrize(
    ("status", "answer", "source", "state", "text"),
    [
        (401, {}, "no token", "warn", "none"),
        (401, {}, "the token in HF_TOKEN", "fail", "not accepted"),
        (200, {"auth": {"accessToken": {"role": "write"}}}, "the token in HF_TOKEN", "ok", "write"),
        (200, {"auth": {"accessToken": {"role": "read"}}}, "the token in HF_TOKEN", "warn", "read"),
        (
            200,
            {
                "auth": {
                    "accessToken": {
                        "role": "fineGrained",
                        "fineGrained": {"scoped": [{"entity": {"name": "ann"}, "permissions": ["repo.write"]}]},
                    }
                }
            },
            "x",
            "ok",
            "repo.write",
        ),
        (200, {"auth": {"accessToken": {"role": "fineGrained", "fineGrained": {}}}}, "x", "warn", "no permissions"),
        (200, {}, "x", "ok", "unknown permissions"),
    ],
)
def test_token_is_told_by_its_scope(status: int, answer: dict, source: str, state: str, text: str) -> None:
    check = token_check(status, answer, source)
    assert check.state == state
    assert text in check.finding


def test_memory_of_a_mac_is_what_metal_recommends() -> None:
    """The finding names the working set, the installed memory and what is free; little free memory is a warning."""
    small = check_memory(5_726_623_061, 8 << 30, 2_100_000_000, "", is_metal=True)
    assert small.state == "warn"
    assert small.finding == "5.73 GB for a node, as Metal recommends, of 8.59 GB installed; 2.10 GB free now"
    large = check_memory(384 << 30, 512 << 30, 400 << 30, "", is_metal=True)
    assert large.state == "ok"
    linux = check_memory(24 << 30, 32 << 30, 20 << 30, "its control group is limited to 32.00 GB", is_metal=False)
    assert linux.finding.endswith("free now; its control group is limited to 32.00 GB")
    assert "Metal" not in linux.finding


def test_port_in_use_is_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert check_port(port).state == "warn"
    assert check_port(port).state == "ok"


def test_cache_that_cannot_be_made_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert check_disk(tmp_path / "file" / "cache").state == "fail"
    assert check_disk(tmp_path / "new" / "cache").state in {"ok", "warn"}
