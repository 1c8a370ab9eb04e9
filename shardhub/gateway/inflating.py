"""Decompression of request bodies: gzip and deflate, with a bound on the output."""

from __future__ import annotations

import zlib

# Accepts gzip's and zlib's headers. Source: zlib's manual, inflateInit2.
_ANY_HEADER = zlib.MAX_WBITS | 32
ENCODINGS = ("gzip", "x-gzip", "deflate")


class Inflater:
    """Inflates one body piece by piece.

    Args:
        encoding: One of `ENCODINGS`.
    """

    def __init__(self, encoding: str) -> None:
        self._zlib = zlib.decompressobj(_ANY_HEADER)
        self._may_be_raw = encoding == "deflate"  # some clients omit zlib's header
        self._has_begun = False

    @property
    def is_whole(self) -> bool:
        """Whether the end of the compressed data has been reached."""
        return self._zlib.eof

    def feed(self, data: bytes, *, most: int) -> bytes:
        """Inflate the next piece.

        Args:
            most: Maximum size of the output in bytes. A larger output is cut to `most + 1` bytes.

        Raises:
            zlib.error: The data is not of this encoding.
        """
        if not data:
            return b""
        try:
            inflated = self._zlib.decompress(data, most + 1)
        except zlib.error:
            if self._has_begun or not self._may_be_raw:
                raise
            self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)
            inflated = self._zlib.decompress(data, most + 1)
        self._has_begun = True
        if self._zlib.unused_data:
            raise zlib.error("Data follows the end of the compressed body.")
        return inflated
