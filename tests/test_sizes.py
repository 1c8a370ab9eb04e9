"""Byte sizes as users read and write them."""

from __future__ import annotations

import pytest

from shardhub.errors import UsageError
from shardhub.sizes import parse_size, size_text, traffic_text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.00 MB"), (1_234_567, "1.23 MB"), (99_990_000, "99.99 MB"), (10**8, "0.10 GB"), (404 * 10**9, "404.00 GB")],
)
def test_files_and_memory_are_shown_in_two_units(size: int, text: str) -> None:
    """Sizes are in GB, or in MB where GB would round too much; a negative rest is shown as such."""
    assert size_text(size) == text
    assert size_text(-size) == (f"-{text}" if size else text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (12_345, "12.3 kB"), (10**6, "1.0 MB"), (25 * 10**8, "2.5 GB")]
)
def test_traffic_is_shown_with_the_unit_it_needs(size: int, text: str) -> None:
    """Traffic is shown in the unit that it needs, from bytes to gigabytes."""
    assert traffic_text(size) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("64GB", 64 * 10**9), (" 16 GiB ", 2**34), ("32", 32 * 10**9), ("0.5tb", 5 * 10**11), ("512M", 512 * 10**6)),
        ("2TiB", 2**41),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    """Decimal and binary units are read; a plain number is in GB."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0GB", "-1GB", "64XB", "1e9", "nan", "1 2", "1" * 20, "GB"])
def test_malformed_sizes_are_refused(text: str) -> None:
    """An empty text, zero and unknown units are refused."""
    with pytest.raises(UsageError, match="is not an amount of memory"):
        parse_size(text)
