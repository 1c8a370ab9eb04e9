"""The newest mlx-lm that pip finds: what it brings, drops, and no longer lets us prove. It is never installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.architectures.matrix import CONFIGS, LOOPED, upstream_modules

ROOT = Path(__file__).resolve().parents[2]


def download(folder: Path) -> Path:
    """The newest wheel of mlx-lm, without what it depends on; skips where no registry gives one."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "mlx-lm",
        "--timeout",
        "20",
        "--retries",
        "2",
        "--no-deps",
        "--only-binary",
        ":all:",
        "-d",
        str(folder),
    ]
    run = subprocess.run([*command, "--quiet"], capture_output=True, text=True, timeout=600, check=False)
    wheels = list(folder.glob("mlx_lm-*.whl"))
    if run.returncode or not wheels:
        last = (run.stderr.strip() or "no output").splitlines()[-1]
        pytest.skip(f"pip finds no mlx-lm to compare with: {last}")
    return wheels[0]


def unmet(wheel: zipfile.ZipFile) -> list[str]:
    """Requirements of a wheel on mlx and transformers that the installed ones do not meet."""
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    wanted = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    needed = [
        r
        for r in wanted
        if r.name in ("mlx", "transformers") and (r.marker is None or r.marker.evaluate({"extra": ""}))
    ]
    return [str(r) for r in needed if not r.specifier.contains(version(r.name), prereleases=True)]


def report(unpacked: Path) -> tuple[set[str], dict[str, tuple[str, str]]]:
    """Modules of the mlx-lm in a folder, and the verdict on each that has a configuration."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(unpacked), str(ROOT)])}
    command = [sys.executable, "-m", "tests.architectures.upstream_report"]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment).stdout
    first, *lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert Path(first["mlx_lm"]).is_relative_to(unpacked)
    return set(first["modules"]), {line["module"]: (line["verdict"], line["reason"]) for line in lines}


@pytest.mark.timeout(900)
def test_newest_upstream_is_proven_or_cleanly_refused(tmp_path, capsys) -> None:
    """A module that is proven with the installed mlx-lm is, with the newest, proven or refused with a reason."""
    wheel = download(tmp_path)
    newest = wheel.name.split("-")[1]
    before = version("mlx-lm")
    if Version(newest) <= Version(before):
        # Nothing newer: every module there is has a configuration, and the other tests here hold them all.
        assert sorted(CONFIGS) == upstream_modules()
        with capsys.disabled():
            print(f"\nmlx-lm {before} is the newest that pip finds ({newest}).")
        return
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as content:
        if missing := unmet(content):
            pytest.skip(f"mlx-lm {newest} needs {', '.join(missing)}, which this environment does not have")
        content.extractall(unpacked)
    there, verdicts = report(unpacked)
    unproven = {module: said for module, said in verdicts.items() if said[0] != "proven" and module not in LOOPED}
    with capsys.disabled():
        print(f"\nmlx-lm {newest} beside the installed {before}:")
        print(f"  new: {', '.join(sorted(there - CONFIGS.keys())) or 'none'}")
        print(f"  gone: {', '.join(sorted(CONFIGS.keys() - there)) or 'none'}")
        for module, (verdict, reason) in sorted(unproven.items()):
            print(f"  {module}: {verdict} ({reason})")
    assert version("mlx-lm") == before
    assert not {module: said for module, said in unproven.items() if said[0] != "refused"}
