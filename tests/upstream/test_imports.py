"""Importing MLX and mlx_lm leaves a process's limits and folders as they should be."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shardhub.errors import AccessError
from shardhub.kernel_folder import is_shared, private_folder, use_private_folder

# Runs as nobody, whom the system lets raise no limit; where the tests are not root's, as whoever runs them.
AS_NOBODY = """
import os, resource, sys
def drop(soft, hard):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if os.geteuid() == 0 and sys.platform == "linux":
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        # Without CAP_SYS_RESOURCE (24), not even root raises a hard limit: PR_CAPBSET_DROP, then the sets themselves.
        class Header(ctypes.Structure):
            _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
        class Data(ctypes.Structure):
            _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]
        header, data = Header(0x20080522, 0), (Data * 2)()
        assert libc.capget(ctypes.byref(header), data) == 0
        data[0].effective &= ~(1 << 24)
        data[0].permitted &= ~(1 << 24)
        assert libc.capset(ctypes.byref(header), data) == 0
"""


def run(code: str, **options) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("package", "soft", "hard"),
    [
        ("shardhub.model.stage", 256, 1024),
        ("shardhub.model.stage", 1024, 20000),
        ("shardhub.gateway.toolcalls", 3000, 20000),
    ],
)
def test_mlx_lm_changes_no_limit_of_files(package, soft, hard) -> None:
    """mlx_lm's import works with low limits and lowers none; the soft limit is raised as far as needed."""
    code = f"""{AS_NOBODY}
before = resource.setrlimit
drop({soft}, {hard})
import {package}
import mlx_lm.utils
print(*resource.getrlimit(resource.RLIMIT_NOFILE), resource.setrlimit is before)
"""
    expected = f"{max(soft, min(2048, hard))} {hard} True"
    assert run(code) == expected


COMPILE = """
import {first}
import {second}
import mlx.core as mx, tempfile
if not mx.metal.is_available():
    mx.eval(mx.compile(lambda x: mx.exp(x) + x * 2)(mx.ones((4,))))
print(tempfile.gettempdir())
"""


@pytest.mark.parametrize(
    ("first", "second"), [("shardhub.engine", "mlx.core"), ("shardhub.cli", "mlx_lm"), ("mlx.core", "shardhub.gateway")]
)
def test_compiled_kernels_lie_in_a_private_folder(tmp_path, first, second) -> None:
    """Kernels go to a private folder, whatever TMPDIR and import order; Python's temporary files stay in TMPDIR."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "mlx").write_text("another user's, in MLX's way")
    env = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(shared)}
    env.pop("XDG_CACHE_HOME", None)
    assert run(COMPILE.format(first=first, second=second), env=env) == str(shared)
    assert [path.name for path in shared.iterdir()] == ["mlx"]
    (folder,) = (path for path in tmp_path.rglob("kernels") if path.is_dir())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sys.platform != "linux" or list(folder.rglob("*.so"))


def test_a_folder_of_kernels_is_kept_and_used_again(tmp_path) -> None:
    """The first safe folder is used; if other users may read a folder of this user's, it is made private."""
    folder = private_folder([tmp_path / "cache"], [])
    assert folder == tmp_path.resolve() / "cache" / "kernels"
    folder.chmod(0o755)
    assert private_folder([tmp_path / "cache"], []) == folder
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["a file", "a link", "open", "above open", "above a file", "absent"])
def test_a_folder_that_others_may_change_is_not_used(tmp_path, what) -> None:
    """An unsafe folder is replaced by one for this process; if that is unsafe too, the error names both."""
    place = tmp_path / "cache"
    place.mkdir()
    folder = place / "kernels"
    if what == "a file":
        folder.write_text("")
    elif what == "a link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif what == "absent":
        place = Path("/proc/nothing-is-made-here")
    elif what == "above a file":
        place.rmdir()
        place.write_text("")
    else:
        folder.mkdir()
        (folder if what == "open" else place).chmod(0o777)
    safe = tmp_path / "temporary"
    safe.mkdir()
    private = private_folder([place], [safe])
    assert private.parent == safe.resolve()
    assert private.stat().st_mode & 0o777 == 0o700
    safe.chmod(0o777)
    with pytest.raises(AccessError) as caught:
        private_folder([place], [safe])
    assert str(place) in caught.value.why
    assert str(safe) in caught.value.why
    safe.chmod(0o1777)
    assert private_folder([place], [safe]).parent == safe.resolve()


def test_a_kernel_that_was_not_written_is_compiled_again(tmp_path) -> None:
    """A kernel file that a crash left empty is compiled again, as MLX would load the empty file."""
    env = {**os.environ, "HOME": str(tmp_path)}
    env.pop("XDG_CACHE_HOME", None)
    code = COMPILE.format(first="shardhub.engine", second="mlx.core")
    run(code, env=env)
    kernels = list(tmp_path.rglob("*.so"))
    for kernel in kernels:
        kernel.write_bytes(b"")
        os.utime(kernel, (0, 0))
    assert run(code, env=env) == tempfile.gettempdir()
    assert all(kernel.stat().st_size for kernel in kernels)


def test_a_kernel_that_another_process_is_writing_is_left_alone(tmp_path, monkeypatch) -> None:
    """A linker begins with an empty file, and nodes of one machine start side by side."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    try:
        folder = use_private_folder()
        new, old = folder / "new.so", folder / "old.so"
        new.touch()
        old.touch()
        os.utime(old, (0, 0))
        use_private_folder()
        assert [kernel.exists() for kernel in (new, old)] == [True, False]
    finally:
        monkeypatch.undo()
        use_private_folder()


@pytest.mark.parametrize(
    ("mode", "owner", "group", "user", "shared"),
    [
        (0o755, 0, 0, 1000, False),
        (0o775, 1000, 1000, 1000, False),
        (0o2775, 0, 10001, 10001, False),  # a volume of Kubernetes, given to a pod's group
        (0o2775, 0, 100, 10001, True),
        (0o2777, 0, 10001, 10001, True),
        (0o775, 1000, 100, 1000, True),
    ],
)
def test_folder_of_a_private_group_is_not_shared(mode, owner, group, user, shared) -> None:
    """A group may write to a folder above MLX's kernels only if it is the user's or the owner's own."""
    assert is_shared(mode, owner=owner, group=group, user=user) == shared
