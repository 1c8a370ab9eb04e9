"""Importing MLX and mlx_lm leaves a process as it should be, whatever it is allowed."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Runs as nobody, whom the system lets raise no limit; where the tests are not root's, as whoever runs them.
AS_NOBODY = """
import os, resource, sys
def drop(soft, hard):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if os.geteuid() == 0:
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


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.parametrize(
    ("package", "soft", "hard"),
    [
        ("shardhub.model.stage", 256, 1024),
        ("shardhub.model.stage", 1024, 20000),
        ("shardhub.gateway.toolcalls", 3000, 20000),
    ],
)
def test_mlx_lm_changes_no_limit_of_files(package, soft, hard) -> None:
    """Its import works below its own limits, lowers none, and the soft limit rises as far as it needs."""
    code = f"""{AS_NOBODY}
before = resource.setrlimit
drop({soft}, {hard})
import {package}
import mlx_lm.utils
print(*resource.getrlimit(resource.RLIMIT_NOFILE), resource.setrlimit is before)
"""
    wanted = f"{max(soft, min(2048, hard))} {hard} True"
    assert run(code) == wanted
