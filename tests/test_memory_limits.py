"""The memory that a process may use, by control groups of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardhub.memory_limits import group_limits, installed_memory, tightest
from shardhub.usecases.cut import with_own_memory

MOUNT_1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
MOUNT_2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def tree(root: Path, own: str, mounts: str, files: dict[str, str]) -> Path:
    """A root folder with the files that the kernel would show."""
    files = {"proc/self/cgroup": own, "proc/self/mountinfo": mounts, **files}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def limit_of(root: Path) -> int | None:
    group = tightest(group_limits(root))
    return None if group is None else group.limit_bytes


def test_own_group_limits_in_version_2(tmp_path) -> None:
    """The limit is read from the process's own group, which is not the root of the hierarchy."""
    root = tree(
        tmp_path,
        "0::/user.slice/job\n",
        MOUNT_2.format(root="/"),
        {
            "sys/fs/cgroup/user.slice/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/job/memory.max": "400000000\n",
            "sys/fs/cgroup/user.slice/job/memory.current": "150000000\n",
            "sys/fs/cgroup/user.slice/job/memory.stat": "anon 1\ninactive_file 40000000\nactive_file 10000000\n",
        },
    )
    (group,) = group_limits(root)
    assert (group.limit_bytes, group.used_bytes) == (400_000_000, 100_000_000)


def test_tightest_group_above_counts(tmp_path) -> None:
    """A group inside a tighter one has the outer limit."""
    files = {"sys/fs/cgroup/a/memory.max": "300\n", "sys/fs/cgroup/a/b/memory.max": "500\n"}
    assert limit_of(tree(tmp_path, "0::/a/b\n", MOUNT_2.format(root="/"), files)) == 300


def test_version_1_is_read(tmp_path) -> None:
    """Version 1 has its own file names, and a number near 2**63 for no limit."""
    own = "9:name=systemd:/\n4:memory:/docker/abc\n0::/\n"
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
        "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "400000000\n",
        "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": "90\n",
        "sys/fs/cgroup/memory/docker/abc/memory.stat": "active_file 1\ntotal_inactive_file 30\ntotal_active_file 10\n",
    }
    (group,) = group_limits(tree(tmp_path, own, MOUNT_1.format(root="/"), files))
    assert (group.limit_bytes, group.used_bytes) == (400_000_000, 50)


@pytest.mark.parametrize("own", ["4:memory:/docker/abc\n", "4:memory:/\n", "4:memory:/../..\n"])
def test_container_sees_its_group_as_the_root(tmp_path, own: str) -> None:
    """In a container the hierarchy is mounted at its own group, whichever root its paths are relative to."""
    files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": "700\n"}
    assert limit_of(tree(tmp_path, own, MOUNT_1.format(root="/docker/abc"), files)) == 700


@pytest.mark.parametrize("text", ["", "max\n", "many\n", "-1\n"])
def test_no_limit_is_none(tmp_path, text: str) -> None:
    """Missing files, and files without a limit, set none."""
    files = {"sys/fs/cgroup/memory.max": text} if text else {}
    assert limit_of(tree(tmp_path, "0::/\n", MOUNT_2.format(root="/"), files)) is None


def test_limit_is_found_without_proc(tmp_path) -> None:
    """Where /proc cannot be read, the usual places of a container's own group are read."""
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("900\n")
    assert limit_of(tmp_path) == 900


def test_plan_takes_this_machines_memory() -> None:
    """`--machine NAME=here` means the memory of this process; other texts are read as before."""
    assert with_own_memory("mini=here") == f"mini={installed_memory() // 10**6}MB"
    assert with_own_memory("mini=16GB") == "mini=16GB"
    assert with_own_memory("here") == "here"
