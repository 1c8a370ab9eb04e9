"""How much memory this process may use: the installed memory, or less under control groups or resource limits."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from shardhub.sizes import size_text

# Without a limit, version 1 writes a number near 2**63 and version 2 the word max.
_NO_LIMIT = 1 << 60
# The part of a group's memory that the kernel can reclaim: pages of files.
_RECLAIMABLE = {"inactive_file", "active_file"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimit:
    """A control group's memory limit and use.

    Attributes:
        folder: The group's folder, for messages.
        limit_bytes: The limit beyond which the kernel kills a process of the group.
        used_bytes: Memory of all its processes together, without what the kernel can reclaim.
    """

    folder: Path
    limit_bytes: int
    used_bytes: int


def installed_memory() -> int:
    """Bytes of installed memory, or the tightest control group's limit if that is smaller."""
    group = tightest(group_limits())
    total = int(psutil.virtual_memory().total)
    return total if group is None else min(total, group.limit_bytes)


def memory_left() -> int | None:
    """Bytes this process may still allocate before a limit stops it; None if only the machine limits it."""
    left = [max(0, group.limit_bytes - group.used_bytes) for group in group_limits()]
    return min([*left, *_resources_left()], default=None)


def available_memory() -> int:
    """Bytes available to this process now."""
    free, left = int(psutil.virtual_memory().available), memory_left()
    return free if left is None else min(free, left)


def limit_text() -> str:
    """The limit below the installed memory, in a few words; empty without one."""
    parts = []
    group = tightest(group_limits())
    if group is not None and group.limit_bytes < int(psutil.virtual_memory().total):
        parts.append(f"its control group is limited to {size_text(group.limit_bytes)}")
    if sys.platform == "linux":
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            parts.append(f"its address space is limited to {size_text(limit)}")
    return ", ".join(parts)


def tightest(groups: list[GroupLimit]) -> GroupLimit | None:
    """The group with the lowest limit; None without one."""
    return min(groups, key=lambda group: group.limit_bytes, default=None)


def group_limits(root: Path = Path("/")) -> list[GroupLimit]:
    """Memory limits of this process's control groups and their ancestors, versions 1 and 2.

    Args:
        root: Folder that contains /proc and /sys.

    Source: cgroups(7), proc_pid_mountinfo(5).
    """
    limits = []
    for folder, version in _own_folders(root):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, usage = (_number(folder / name) for name in names)
        if limit is not None and limit < _NO_LIMIT:
            used = max(0, (usage or 0) - _reclaimable(folder))
            limits.append(GroupLimit(folder=folder, limit_bytes=limit, used_bytes=used))
    return limits


def _own_folders(root: Path) -> Iterator[tuple[Path, int]]:
    """Folders of this process's groups that may limit memory, with the version of their hierarchy."""
    try:
        own = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        # Without /proc, only the place where a container finds its own group is known.
        yield root / "sys/fs/cgroup", 2
        yield root / "sys/fs/cgroup/memory", 1
        return
    paths: dict[int, str] = {}
    for line in own:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            paths[2] = path
        elif "memory" in controllers.split(","):
            paths[1] = path
    for line in mounts:
        fields, _, kind = line.partition(" - ")
        _, _, _, mount_root, mount_point = [*fields.split(" "), "", "", "", "", ""][:5]
        name, options = kind.split(" ")[0], kind.split(" ")[-1].split(",")
        version = 2 if name == "cgroup2" else 1 if name == "cgroup" and "memory" in options else 0
        if version not in paths or not mount_point.startswith("/"):
            continue
        top = root / mount_point.lstrip("/")
        inside = _below(paths[version], mount_root)
        yield from ((top / part, version) for part in (inside, *inside.parents))


def _below(path: str, mount_root: str) -> PurePosixPath:
    """A group's path relative to the mount of its hierarchy; the mount itself if the group is outside it."""
    relative = PurePosixPath(path.lstrip("/"))
    if ".." in relative.parts:
        return PurePosixPath()
    if (base := PurePosixPath(mount_root.lstrip("/"))) == PurePosixPath():
        return relative
    return relative.relative_to(base) if relative.is_relative_to(base) else PurePosixPath()


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable(folder: Path) -> int:
    try:
        lines = (folder / "memory.stat").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    pairs = dict(line.split(" ", 1) for line in lines if " " in line)
    # In version 1, only the names with total_ include a group's children.
    values = (pairs.get(f"total_{name}", pairs.get(name, "")) for name in _RECLAIMABLE)
    return sum(int(value) for value in values if value.isdigit())


def _resources_left() -> list[int]:
    """Bytes left of the limits on address space and data; Linux only, as other systems do not enforce them."""
    if platform.system() != "Linux":
        return []
    left = []
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            left.append(max(0, soft - _status_bytes(name)))
    return left


def _status_bytes(name: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
