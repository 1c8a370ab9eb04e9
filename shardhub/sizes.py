"""Byte sizes as people read and write them: in decimal units, as disks and memory are sold."""

from __future__ import annotations

import re

from shardhub.errors import UsageError

_UNITS = {
    "": 10**9,
    **{"M": 10**6, "MB": 10**6, "G": 10**9, "GB": 10**9, "T": 10**12, "TB": 10**12},
    **{"MIB": 2**20, "GIB": 2**30, "TIB": 2**40},
}
_SIZE = re.compile(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([A-Za-z]*)\s*")
_FROM_GB = 10**8


def size_text(size_bytes: float) -> str:
    """Format the size of files or memory: `5.00 GB`, `0.12 GB`, `34.56 MB`."""
    return f"{size_bytes / 1e9:.2f} GB" if abs(size_bytes) >= _FROM_GB else f"{size_bytes / 1e6:.2f} MB"


def traffic_text(size_bytes: int) -> str:
    """Format what is read or sent for a token or a header: `512 B`, `16.4 kB`, `1.2 MB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"


def parse_size(text: str) -> int:
    """Parse a size such as `12GB`, `512MiB` or `64`, which is in GB, into bytes.

    Raises:
        UsageError: The text is not a size above zero.
    """
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].upper(), 0) if match else 0
    size = int(float(match[1]) * unit) if match else 0
    if size <= 0:
        raise UsageError(f"{text[:80]!r} is not an amount of memory.", hint="Write it like 12GB, 512MB or 16GiB.")
    return size


def rate_text(per_s: float) -> str:
    """A number of tokens a second: three digits, and no more precise than predictions are."""
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.3g}"
