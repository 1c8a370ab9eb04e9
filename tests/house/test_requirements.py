"""The requirements on a machine: README's text, the registry's wheels, and the message on an unfit machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from shardhub.errors import ShardhubError, outcome
from shardhub.requirements import (
    NEWEST_PYTHON,
    OLDEST_GLIBC,
    OLDEST_MACOS,
    OLDEST_PYTHON,
    Machine,
    this_machine,
    unfitness,
)
from shardhub.toolchain import mlx_missing

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = [f"3.{minor}" for minor in range(OLDEST_PYTHON[1], NEWEST_PYTHON[1] + 1)]
GLIBC = "_".join(map(str, OLDEST_GLIBC))
PLATFORMS = ["aarch64-apple-darwin", f"x86_64-manylinux_{GLIBC}", f"aarch64-manylinux_{GLIBC}"]
MAC = Machine(system="Darwin", architecture="arm64", macos="14.5", glibc="", python=(3, 12))
LINUX = Machine(system="Linux", architecture="x86_64", macos="", glibc="2.36", python=(3, 12))


# Resolutions side by side: they wait for the registry.
NUM_AT_ONCE = 6


def resolve(platform: str, python: str, macos: tuple[int, int] = OLDEST_MACOS) -> subprocess.CompletedProcess[str]:
    """The wheels that uv would install on a machine, without compiling anything."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--only-binary", ":all:"]
    command += ["--python-platform", platform, "--python-version", python, str(ROOT / "pyproject.toml")]
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": ".".join(map(str, macos))}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def resolutions() -> Iterator[dict[tuple[str, str], Future[subprocess.CompletedProcess[str]]]]:
    """What `resolve` says for each platform and Python."""
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        yield {each: pool.submit(resolve, *each) for each in product(PLATFORMS, PYTHONS)}
        pool.shutdown(cancel_futures=True)


@pytest.mark.registry
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_dependencies_resolve_to_wheels(platform: str, python: str, resolutions) -> None:
    """On each system and Python that README names, everything installs from wheels, MLX's own among them."""
    done = resolutions[platform, python].result()
    assert done.returncode == 0, done.stderr
    names = {line.partition("==")[0] for line in done.stdout.splitlines() if "==" in line}
    assert {"mlx", "mlx-lm", "mlx-metal" if "darwin" in platform else "mlx-cpu"} <= names


@pytest.mark.registry
@pytest.mark.parametrize(
    ("platform", "macos"),
    [("aarch64-apple-darwin", (13, 0)), ("x86_64-manylinux_2_34", OLDEST_MACOS), ("x86_64-apple-darwin", OLDEST_MACOS)],
)
def test_older_systems_have_no_wheels(platform: str, macos: tuple[int, int]) -> None:
    """Systems that README excludes have no wheels: older macOS, older glibc, Intel Macs."""
    done = resolve(platform, PYTHONS[0], macos)
    assert done.returncode != 0
    assert "mlx" in done.stderr


def test_readme_says_what_is_needed() -> None:
    """The numbers in the message for an unfit machine are those of README, the metadata and the classifiers."""
    for text in (f"macOS {OLDEST_MACOS[0]}", f"glibc {'.'.join(map(str, OLDEST_GLIBC))}", "g++", "Apple silicon"):
        assert text in README
    assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}" in README
    assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"
    classified = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["project"]["classifiers"]), re.MULTILINE)
    assert classified == PYTHONS


@pytest.mark.parametrize(
    ("machine", "text"),
    [
        (MAC, ""),
        (LINUX, ""),
        (LINUX._replace(architecture="aarch64", glibc="2.35", python=(3, 14)), ""),
        (MAC._replace(macos="13.6.1"), "this is macOS 13.6.1"),
        (MAC._replace(architecture="x86_64"), "Apple silicon"),
        (LINUX._replace(glibc="2.31"), "this system has 2.31"),
        (LINUX._replace(glibc=""), "Alpine"),
        (LINUX._replace(architecture="riscv64"), "riscv64"),
        (LINUX._replace(python=(3, 9)), "this is Python 3.9"),
        (MAC._replace(python=(3, 15)), "this is Python 3.15"),
        (Machine(system="Windows", architecture="AMD64", macos="", glibc="", python=(3, 12)), "WSL 2"),
    ],
)
def test_unfit_machine_is_told_in_a_sentence(machine: Machine, text: str) -> None:
    """A machine is fit, or the message names what MLX needs and what the machine has."""
    assert text in unfitness(machine)
    assert bool(unfitness(machine)) == bool(text)


def test_this_machine_is_fit() -> None:
    """Where the tests run, MLX is installed."""
    assert unfitness(this_machine()) == ""


def test_import_of_mlx_that_fails_is_a_sentence() -> None:
    """An ImportError of MLX gets a message about what the machine lacks, or about reinstalling; other errors pass."""
    broken = ImportError("dlopen(core.so): Symbol not found", name="mlx.core")
    unfit = mlx_missing(broken, MAC._replace(macos="13.1"))
    assert isinstance(unfit, ShardhubError)
    assert unfit.why == "MLX needs macOS 14 or later; this is macOS 13.1."
    assert outcome(unfit).exit == 1
    fit = mlx_missing(broken, MAC)
    assert fit is not None
    assert "Symbol not found" in fit.why
    assert "--force-reinstall" in fit.hint
    assert mlx_missing(ImportError("x", name="numpy")) is None
    assert mlx_missing(ValueError("x")) is None


def test_command_without_mlx_ends_with_a_sentence(tmp_path: Path) -> None:
    """Where MLX is not installed, a command that computes reports it on one screen, without a traceback."""
    blocker = "import sys; sys.modules['mlx'] = sys.modules['mlx.core'] = None\n"
    program = f"{blocker}sys.argv = ['shardhub', 'selftest']; from shardhub.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "Error: MLX cannot be loaded." in done.stderr
    assert "Traceback" not in done.stderr


def test_build_on_an_unfit_machine_ends_with_the_sentence(tmp_path: Path) -> None:
    """The build checks the requirements before anything is installed, and pip shows their message."""
    program = (
        "import sys, platform; platform.system = lambda: 'Windows'; sys.path.insert(0, '.')\n"
        "from hatch_build import MachineCheck; MachineCheck('.', {}).update({})"
    )
    run = [sys.executable, "-c", program]
    environment = {name: value for name, value in os.environ.items() if name != "SHARDHUB_BUILD_ANYWHERE"}
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "shardhub cannot run on this machine. MLX needs macOS or Linux; this is Windows." in done.stderr
    assert "Traceback" not in done.stderr
    environment["SHARDHUB_BUILD_ANYWHERE"] = "1"
    subprocess.run(run, cwd=ROOT, env=environment, check=True)
