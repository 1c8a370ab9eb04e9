"""The newest mlx-lm that pip offers: which modules it adds, drops or breaks the proof of. It is never installed."""

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

pytestmark = pytest.mark.architectures

ROOT = Path(__file__).resolve().parents[2]


def download(folder: Path) -> Path:
    """The newest wheel of mlx-lm, without its dependencies; skips if no registry offers one."""
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
    """A wheel's requirements on mlx and transformers that the installed versions do not meet."""
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    needed = [
        r
        for r in requirements
        if r.name in ("mlx", "transformers") and (r.marker is None or r.marker.evaluate({"extra": ""}))
    ]
    return [str(r) for r in needed if not r.specifier.contains(version(r.name), prereleases=True)]


def report(unpacked: Path) -> tuple[set[str], dict[str, tuple[str, str]], dict[str, list[str] | None]]:
    """The model modules of an mlx-lm in a folder, with verdict and fields read for each that has a configuration."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(unpacked), str(ROOT)])}
    command = [sys.executable, "-m", "tests.architectures.upstream_report"]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment).stdout
    first, *lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert Path(first["mlx_lm"]).is_relative_to(unpacked)
    verdicts = {line["module"]: (line["verdict"], line["reason"]) for line in lines}
    return set(first["modules"]), verdicts, {line["module"]: line["reads"] for line in lines}


def changes(now: dict[str, list[str] | None]) -> list[str]:
    """One line for each module that reads other config.json fields than the table of unread fields says."""
    before: dict[str, list[str]] = json.loads(Path(__file__).with_name("config_reads.json").read_text())
    lines = []
    for module, fields in sorted(now.items()):
        if fields is None or module not in before or fields == before[module]:
            continue
        more, less = (sorted(set(a) - set(b)) for a, b in ((fields, before[module]), (before[module], fields)))
        lines.append(f"{module}: reads {', '.join(more) or 'nothing'} more, {', '.join(less) or 'nothing'} no longer")
    return lines


@pytest.mark.timeout(900)
def test_newest_upstream_is_proven_or_cleanly_refused(tmp_path, capsys) -> None:
    """A module that is proven with the installed mlx-lm is proven with the newest, or refused with a reason."""
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
    there, verdicts, reads = report(unpacked)
    unproven = {module: said for module, said in verdicts.items() if said[0] != "proven" and module not in LOOPED}
    with capsys.disabled():
        print(f"\nmlx-lm {newest} beside the installed {before}:")
        print(f"  new: {', '.join(sorted(there - CONFIGS.keys())) or 'none'}")
        print(f"  gone: {', '.join(sorted(CONFIGS.keys() - there)) or 'none'}")
        for module, (verdict, reason) in sorted(unproven.items()):
            print(f"  {module}: {verdict} ({reason})")
        print("  fields of config.json (python benchmarks/config_fields.py makes the table again):")
        for line in changes(reads) or ["none changed"]:
            print(f"  {line}")
    assert version("mlx-lm") == before
    assert not {module: said for module, said in unproven.items() if said[0] != "refused"}


def test_changed_reads_are_reported() -> None:
    """The report lists modules that begin or cease to read a field, and no others."""
    before: dict[str, list[str] | None] = json.loads(Path(__file__).with_name("config_reads.json").read_text())
    assert changes(before) == []
    assert before["llama"] is not None
    now = {**before, "llama": [*(name for name in before["llama"] if name != "rope_theta"), "rope_parameters"]}
    assert changes(now) == ["llama: reads rope_parameters more, rope_theta no longer"]
    assert changes({**before, "llama": None, "of-tomorrow": ["a"]}) == []
