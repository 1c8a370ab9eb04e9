"""The local Hub's memory and speed while the real client uploads and downloads, beside a plain copy of the file.

The server is a process of its own; its peak resident memory is the kernel's own figure where there is one (Linux), else
the largest of samples. Upload and download each end on the disk of this machine, so three copies of the file must fit.

    python benchmarks/hub.py [--size-mb 1200] [--files 1] [--lfs] [--dir FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

_SAMPLE_S = 0.02


class Peak:
    """The peak resident memory of a process, in bytes."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._largest = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            try:
                self._largest = max(self._largest, self._process.memory_info().rss)
            except psutil.NoSuchProcess:
                return

    def read(self) -> int:
        status = Path(f"/proc/{self._process.pid}/status")
        if status.exists():
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        return self._largest

    def stop(self) -> None:
        self._done.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=1200, help="of all files together")
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--lfs", action="store_true", help="upload over LFS, not over Xet, the client's default")
    parser.add_argument("--dir", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.lfs:
        os.environ["HF_HUB_DISABLE_XET"] = "1"
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        figures = measure(Path(folder), options.size_mb, options.files)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<24} {value:>10}")


def measure(folder: Path, size_mb: int, num_files: int) -> dict[str, Any]:
    """Upload, download and copy `num_files` random files of `size_mb` MB together."""
    from huggingface_hub import HfApi

    from shardhub.localhub.hub import LocalHub

    source = folder / "source"
    source.mkdir()
    digests = {}
    for number in range(num_files):
        path = source / f"weights-{number}.safetensors"
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for _ in range(size_mb // num_files):
                block = os.urandom(1_000_000)
                file.write(block)
                digest.update(block)
        digests[path.name] = digest.hexdigest()
    copied = timed(lambda: copy_to_disk(source, folder / "copy"))
    with LocalHub(folder / "hub") as hub:
        token = hub.token("bench")
    command = [sys.executable, "-m", "shardhub.localhub", str(folder / "hub")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        api = HfApi(endpoint=server.stdout.readline().strip(), token=token)
        peak = Peak(server.pid)
        try:
            api.create_repo("bench/model")
            idle = peak.read()
            uploaded = timed(lambda: api.upload_folder(repo_id="bench/model", folder_path=source))
            after_upload = peak.read()
            sha = api.model_info("bench/model").sha
            downloaded = timed(
                lambda: api.snapshot_download("bench/model", revision=sha, local_dir=folder / "out", cache_dir=folder)
            )
            after_download = peak.read()
        finally:
            peak.stop()
            server.terminate()
    for name, digest in digests.items():
        with (folder / "out" / name).open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == digest, name
    num_bytes = sum(path.stat().st_size for path in source.iterdir())
    return {
        "size_mb": num_bytes // 1_000_000,
        "files": num_files,
        "upload_s": round(uploaded, 2),
        "rss_idle_mb": round(idle / 1e6, 1),
        "rss_peak_upload_mb": round(after_upload / 1e6, 1),
        "rss_peak_download_mb": round(after_download / 1e6, 1),
        "upload_mb_per_s": round(num_bytes / 1e6 / uploaded, 1),
        "download_mb_per_s": round(num_bytes / 1e6 / downloaded, 1),
        "file_copy_mb_per_s": round(num_bytes / 1e6 / copied, 1),
    }


def copy_to_disk(source: Path, target: Path) -> None:
    """Copy the files of a folder and bring them to disk, as the Hub does."""
    target.mkdir()
    for path in source.iterdir():
        with path.open("rb") as reader, (target / path.name).open("wb") as writer:
            while block := reader.read(1 << 20):
                writer.write(block)
            writer.flush()
            os.fsync(writer.fileno())


def timed(action: Callable[[], Any]) -> float:
    """Seconds an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
