"""The BLAS under MLX's CPU backend on Linux: the reference BLAS in its wheel, or OpenBLAS loaded in front of it.

MLX's wheel calls `cblas_sgemm` and related functions, and carries the reference BLAS for them. The dynamic linker looks
for a symbol in the process's global scope before it looks in the wheel, so a library loaded there before MLX is used
instead; LAPACK remains the wheel's own. The `scipy-openblas32` wheel prefixes its symbols with `scipy_`: three
functions that forward to it are compiled when they are needed, by the compiler that MLX needs anyway.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from shardhub.errors import ShardhubError

log = logging.getLogger(__name__)

# Sonames of OpenBLAS with 32-bit integers and unprefixed names; the threaded build first, for systems with both.
SYSTEM_LIBRARIES = ("libopenblasp.so.0", "libopenblas.so.0")
_WHEEL = "scipy_openblas32"
_WHEEL_LIBRARY = "libscipy_openblas.so"
_WHEEL_PREFIX = "scipy_"
# The variables from which OpenBLAS reads its number of threads.
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
# Every BLAS function that MLX calls itself.
_FORWARDS = """
#define PARAMETERS(T, S) \\
    int order, int trans_a, int trans_b, int m, int n, int k, S alpha, const T* a, int lda, const T* b, int ldb, \\
    S beta, T* c, int ldc
#define FORWARD(name, T, S) \\
    extern "C" void scipy_##name(PARAMETERS(T, S)); \\
    extern "C" void name(PARAMETERS(T, S)) { \\
        scipy_##name(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc); }
FORWARD(cblas_sgemm, float, float)
FORWARD(cblas_dgemm, double, double)
FORWARD(cblas_cgemm, void, const void*)
"""
# Compiling takes a tenth of a second; longer on a loaded machine.
_COMPILE_TIMEOUT_S = 60


class Blas(StrEnum):
    """Which BLAS to compute with: `auto` is OpenBLAS if MLX would use the reference BLAS and OpenBLAS can be loaded."""

    AUTO = "auto"
    OPENBLAS = "openblas"
    REFERENCE = "reference"


# The choice to apply when MLX is imported; by default MLX keeps its own BLAS.
_chosen = Blas.REFERENCE


class _Address(ctypes.Structure):
    """Dl_info of dladdr(3): the library and symbol at an address."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("symbol_address", ctypes.c_void_p),
    )


def choose_blas(choice: Blas) -> None:
    """Choose the BLAS that MLX will use if it is imported later.

    A library that was named is loaded now, so that a failure shows at once; `auto` waits.

    Raises:
        ShardhubError: `openblas` was chosen and cannot be loaded.
    """
    global _chosen
    _chosen = choice
    if choice is Blas.OPENBLAS:
        load_openblas()


def use_chosen_blas() -> None:
    """Load the chosen BLAS in front of MLX's own; called when MLX is about to be imported."""
    use_blas(_chosen)
    log.debug("BLAS: %s", describe_blas() or "MLX's own")


def use_blas(choice: Blas) -> None:
    """Load OpenBLAS in front of MLX's own BLAS if `choice` says so; must be called before MLX is imported.

    Raises:
        ShardhubError: `openblas` was chosen and cannot be loaded.
    """
    if choice is Blas.OPENBLAS or (choice is Blas.AUTO and carries_reference_blas() and "mlx.core" not in sys.modules):
        try:
            load_openblas()
        except ShardhubError:
            if choice is Blas.OPENBLAS:
                raise


def load_openblas() -> None:
    """Load OpenBLAS where MLX finds it before its own BLAS; do nothing if a BLAS is loaded there already.

    Without OPENBLAS_NUM_THREADS it gets `default_threads()` threads.

    Raises:
        ShardhubError: OpenBLAS cannot be loaded, or MLX was imported before and is bound to its own BLAS.
    """
    if not _is_linux():
        raise ShardhubError("OpenBLAS is not used on this system.", why=f"MLX on {sys.platform} brings its own BLAS.")
    if _file_of("cblas_sgemm", ctypes.CDLL(None)):
        return
    if "mlx.core" in sys.modules:
        raise ShardhubError(
            "It is too late to load OpenBLAS in this process.", why="MLX is already loaded and uses its own BLAS."
        )
    reasons = []
    with _thread_variable():
        for name in (_WHEEL, *SYSTEM_LIBRARIES):
            try:
                if name == _WHEEL:
                    _load_wheel()
                else:
                    ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            except (OSError, subprocess.SubprocessError) as error:
                output = getattr(error, "stderr", None) or b""
                reason = output.decode(errors="replace")[-300:].strip() or str(error)
                reasons.append(f"{name}: {reason.removeprefix(f'{name}: ')}")
            else:
                return
    raise ShardhubError(
        "OpenBLAS could not be loaded.",
        why="; ".join(reasons),
        hint="Install one: pip install scipy-openblas32, or apt-get install libopenblas0 (Debian, Ubuntu)",
    )


def carries_reference_blas() -> bool:
    """Whether the installed MLX wheel contains the reference BLAS: those for macOS and CUDA do not."""
    spec = importlib.util.find_spec("mlx") if sys.platform == "linux" else None
    folders = [Path(folder).parent / "mlx_cpu.libs" for folder in (spec and spec.submodule_search_locations) or ()]
    return any(any(folder.glob("libblas-*.so*")) for folder in folders)


def blas_path(mlx_file: str | None = None) -> str:
    """Path of the library that computes MLX's `cblas_sgemm` in this process; empty if there is none.

    Args:
        mlx_file: `mlx.core.__file__`; without it only a BLAS in front of MLX's own is found.
    """
    if not _is_linux():
        return ""
    scope = ctypes.CDLL(None)
    if _is_forwarded(scope):
        return _file_of(f"{_WHEEL_PREFIX}cblas_sgemm", scope)
    path = _file_of("cblas_sgemm", scope)
    return path or (_file_of("cblas_sgemm", ctypes.CDLL(mlx_file)) if mlx_file else "")


def describe_blas(mlx_file: str | None = None) -> str:
    """File name of the BLAS in use; for OpenBLAS also what its numbers depend on: version, kernels and threads."""
    path = blas_path(mlx_file)
    scope = ctypes.CDLL(None)
    prefix = _WHEEL_PREFIX if path and _is_forwarded(scope) else ""
    if not path or not hasattr(scope, f"{prefix}openblas_get_config"):
        return Path(path).name
    texts = []
    for name in ("config", "corename"):
        get_text = scope[f"{prefix}openblas_get_{name}"]
        get_text.restype = ctypes.c_char_p
        texts.append(get_text().decode(errors="replace"))
    version = " ".join(texts[0].split()[:2])
    num_threads = scope[f"{prefix}openblas_get_num_threads"]()
    return f"{Path(path).name} ({version}, {texts[1]}, {num_threads} thread{'s' if num_threads != 1 else ''})"


def default_threads() -> int:
    """Number of OpenBLAS threads: all cores but one.

    Its threads wait for each other, so one core taken by other work delays all of them: with as many threads as cores,
    decoding beside other work was three times slower than with one thread.
    """
    return max(1, num_cores() - 1)


def num_cores() -> int:
    """Number of physical cores this process may use: those in its affinity mask, within its control group's quota."""
    if sys.platform == "linux":
        cores = {_core(cpu) for cpu in os.sched_getaffinity(0)}
        return max(1, int(min(len(cores), _quota_cores())))
    else:
        return os.cpu_count() or 1


def _is_linux() -> bool:
    # Not sys.platform: type checkers for another system would treat everything that follows as unreachable.
    return platform.system() == "Linux"


def _load_wheel() -> None:
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        raise FileNotFoundError("not installed")
    library = Path(spec.origin).parent / "lib" / _WHEEL_LIBRARY
    # The forwarding functions find the library by its soname, because it is loaded already.
    ctypes.CDLL(str(library))
    with tempfile.TemporaryDirectory(prefix="shardhub-blas-") as folder:
        source, forwards = Path(folder, "forwards.cc"), Path(folder, "libforwards.so")
        source.write_text(_FORWARDS)
        command = ["g++", "-O1", "-shared", "-fPIC", "-o", str(forwards), str(source), str(library)]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=_COMPILE_TIMEOUT_S)
        ctypes.CDLL(str(forwards), mode=ctypes.RTLD_GLOBAL)


@contextmanager
def _thread_variable() -> Iterator[None]:
    """Set OPENBLAS_NUM_THREADS while OpenBLAS loads, unless the user set it; other code here never sees it."""
    if any(name in os.environ for name in _THREAD_VARIABLES):
        yield
        return
    os.environ[_THREAD_VARIABLES[0]] = str(default_threads())
    try:
        yield
    finally:
        del os.environ[_THREAD_VARIABLES[0]]


def _is_forwarded(scope: ctypes.CDLL) -> bool:
    """Whether `cblas_sgemm` is our forwarding function, computed by the wheel's library."""
    return Path(_file_of("cblas_sgemm", scope)).name == "libforwards.so"


def _file_of(symbol: str, scope: ctypes.CDLL) -> str:
    """Path of the first library that defines a symbol, in the dynamic linker's order; empty if none does."""
    try:
        address = ctypes.cast(scope[symbol], ctypes.c_void_p)
    except AttributeError:
        return ""
    location = _Address()
    if not ctypes.CDLL(None).dladdr(address, ctypes.byref(location)) or not location.file:
        return ""
    return os.fsdecode(location.file)


def _core(cpu: int) -> str:
    """An identifier that all hardware threads of one core share."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota_cores() -> float:
    """CPU seconds per second that this process's control group may use; infinite without a limit."""
    try:
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        quota, period = Path("/sys/fs/cgroup", own[3:].lstrip("/"), "cpu.max").read_text().split()
        return int(quota) / int(period) if quota != "max" else float("inf")
    except (OSError, StopIteration, ValueError):
        return float("inf")
