"""Malformed safetensors files, each with one defect, and well-formed ones beside them."""

from __future__ import annotations

import json
from typing import Any


def build(header: Any, data: bytes = b"", *, length: int | None = None, raw: bytes | None = None) -> bytes:
    """A file with this header (JSON, or `raw`), this stated header length, and this data."""
    text = json.dumps(header).encode() if raw is None else raw
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: Any = (2, 2), offsets: Any = (0, 16), dtype: Any = "F32") -> dict[str, Any]:
    """The header entry of one tensor."""
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": list(offsets) if isinstance(offsets, tuple) else offsets,
    }


_GOOD = {"a": entry()}
_TEXT = json.dumps(_GOOD).encode()
_DATA = bytes(range(16))


def _malformed() -> dict[str, bytes]:
    one = {name: build({"a": bad}, _DATA) for name, bad in _bad_entries().items()}
    return one | {
        "empty_file": b"",
        "seven_bytes": b"\x10\x00\x00\x00\x00\x00\x00",
        "length_only": (16).to_bytes(8, "little"),
        "header_longer_than_file": build(None, raw=_TEXT, length=len(_TEXT) + 1000),
        "header_of_99_MB": build(None, raw=_TEXT, length=99 << 20),
        "header_of_2_to_64": build(None, raw=_TEXT, length=2**64 - 1),
        "header_empty": build(None, raw=b""),
        "header_not_json": build(None, _DATA, raw=b"{not json}"),
        "header_list": build([1, 2], _DATA),
        "header_starts_with_space": build(None, _DATA, raw=b" " + _TEXT),
        "header_with_byte_order_mark": build(None, _DATA, raw=b"\xef\xbb\xbf" + _TEXT),
        "header_invalid_utf8": build(None, _DATA, raw=_TEXT.replace(b'"a"', b'"\xff"')),
        "header_nested_too_deep": build(None, raw=b'{"a":' + b"[" * 1_000_000),
        "header_of_ten_million_lists": build(None, raw=b'{"a":[' + b"[]," * 10_000_000 + b"[]]}"),
        "header_NaN": build(None, _DATA, raw=_TEXT.replace(b"16", b"NaN")),
        "header_minus_zero": build(None, _DATA, raw=_TEXT.replace(b"[0, 16]", b"[-0, 16]")),
        "header_half_a_surrogate_pair": build(None, _DATA, raw=_TEXT.replace(b'"a"', b'"\\ud800"')),
        "metadata_half_a_surrogate_pair": build(
            None, _DATA, raw=b'{"__metadata__": {"format": "\\udc00"}, ' + _TEXT[1:]
        ),
        "shape_beyond_64_bits_before_zero": build({"a": entry(shape=(1 << 50, 1 << 50, 0), offsets=(0, 0))}),
        "header_number_of_5000_digits": build(None, _DATA, raw=_TEXT.replace(b"16", b"9" * 5000)),
        "key_twice": build(None, _DATA, raw=_TEXT[:-1] + b"," + _TEXT[1:]),
        "field_twice": build(None, _DATA, raw=_TEXT.replace(b'"dtype"', b'"dtype": "F32", "dtype"')),
        "metadata_number": build({"__metadata__": {"format": 1}, **_GOOD}, _DATA),
        "metadata_nested": build({"__metadata__": {"format": {"a": "b"}}, **_GOOD}, _DATA),
        "metadata_list": build({"__metadata__": ["mlx"], **_GOOD}, _DATA),
        "metadata_empty_list": build({"__metadata__": [], **_GOOD}, _DATA),
        "truncated": build(_GOOD, _DATA[:-1]),
        "no_data": build(_GOOD),
        "trailing_byte": build(_GOOD, _DATA + b"\0"),
        "trailing_megabyte": build(_GOOD, _DATA + bytes(1 << 20)),
        "data_without_tensors": build({}, _DATA),
        "hole_at_start": build({"a": entry(offsets=(8, 24))}, bytes(24)),
        "hole_between": build({"a": entry(), "b": entry(offsets=(20, 36))}, bytes(36)),
        "overlap": build({"a": entry(), "b": entry(offsets=(8, 24))}, bytes(24)),
        "same_range_twice": build({"a": entry(), "b": entry()}, _DATA),
        "name_empty": build({"": entry()}, _DATA),
        "name_of_10_kB": build({"n" * 10_000: entry()}, _DATA),
    }


def _bad_entries() -> dict[str, Any]:
    return {
        "dtype_unknown": entry(dtype="F33"),
        "dtype_number": entry(dtype=5),
        "dtype_list": entry(dtype=["F32"]),
        "dim_negative": entry(shape=(-1, 4)),
        "dims_both_negative": entry(shape=(-2, -2)),
        "dim_float": entry(shape=(2.0, 2)),
        "dim_true": entry(shape=(True, 4)),
        "dim_text": entry(shape=("2", 2)),
        "dim_null": entry(shape=(None, 2)),
        "dim_2_to_64": entry(shape=(2**64, 1)),
        "dims_overflow_to_zero": entry(shape=(65536,) * 4, offsets=(0, 0)),
        "dims_overflow_to_size": entry(shape=(2**62 + 1, 4)),
        "dims_100000": entry(shape=(1,) * 100_000, offsets=(0, 4)),
        "dims_9": entry(shape=(1,) * 7 + (2, 2)),
        "shape_text": entry(shape="22"),
        "shape_number": entry(shape=4),
        "shape_larger_than_data": entry(shape=(2, 3)),
        "shape_smaller_than_data": entry(shape=(2, 1)),
        "offsets_fractional": entry(offsets=(0, 16.5)),
        "offsets_negative": entry(offsets=(-16, 0)),
        "offsets_into_the_header": entry(offsets=(-8, 8)),
        "offsets_reversed": entry(offsets=(16, 0)),
        "offsets_wrapping": entry(shape=(-1, 4), offsets=(0, 2**64 - 16)),
        "offsets_one": entry(offsets=(16,)),
        "offsets_three": entry(offsets=(0, 8, 16)),
        "offsets_null": entry(offsets=None),
        "entry_number": 5,
        "entry_list": [1],
        "entry_empty": {},
        "entry_without_shape": {"dtype": "F32", "data_offsets": [0, 16]},
        "entry_with_more": {**entry(), "strides": [2, 1]},
    }


MALFORMED = _malformed()

WELL_FORMED = {
    "one_tensor": build(_GOOD, _DATA),
    "padded_with_metadata": build(
        None, _DATA, raw=json.dumps({"__metadata__": {"format": "mlx"}, **_GOOD}).encode() + b"   "
    ),
    "metadata_null": build({"__metadata__": None, **_GOOD}, _DATA),
    "scalar_empty_and_wide": build(
        {
            "wide": entry(shape=(1, 1, 1, 1, 1, 1, 2, 2)),
            "none": entry(shape=(0, 7), offsets=(16, 16)),
            "scalar": entry(shape=(), offsets=(16, 18), dtype="BF16"),
        },
        bytes(18),
    ),
    "no_tensors": build({}),
}
