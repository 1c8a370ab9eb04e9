"""Wheel, sdist and editable install contain what the checkout contains."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from shardhub.resources import resource

ROOT = Path(__file__).resolve().parents[2]
# Folders at the root of the checkout that are inside the package in a wheel.
RESOURCES = ("templates", "protos")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fresh sdist, and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def files(folder: str) -> set[str]:
    """Files of a folder of the checkout, without those that Python and editors generate."""
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths if not path.name.startswith(".")}


def test_wheel_holds_package_and_resources(built: Path) -> None:
    """The wheel has every module, templates/ and protos/ inside the package, the type marker and the licence."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
    expected = files("shardhub") | {f"shardhub/{name}" for folder in RESOURCES for name in files(folder)}
    assert expected <= names
    assert "shardhub/py.typed" in names
    assert "shardhub/protos/shardhub.proto" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"shardhub"}


def test_sdist_can_be_tested(built: Path) -> None:
    """The sdist has sources, resources and tests, so that a distributor can run them."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    for folder in ("shardhub", "tests", "deploy", *RESOURCES):
        assert files(folder) <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= names


@pytest.mark.parametrize("folder", RESOURCES)
def test_checkout_has_one_copy_of_resources(folder: str) -> None:
    """In a checkout resources come from its root, so that an editable install has no copy that could go stale."""
    assert resource(folder) == ROOT / folder
    assert not (ROOT / "shardhub" / folder).exists()
