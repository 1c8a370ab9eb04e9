"""Bodies that come compressed: gzip and deflate, as far as what comes out is not too big."""

from __future__ import annotations

import zlib

# Takes gzip's header and zlib's. Source: zlib's manual, inflateInit2.
_ANY_HEADER = zlib.MAX_WBITS | 32
ENCODINGS = ("gzip", "x-gzip", "deflate")


class Inflater:
    """Inflates one body, in pieces.

    Args:
        encoding: One of `ENCODINGS`.
    """

    def __init__(self, encoding: str) -> None:
        self._zlib = zlib.decompressobj(_ANY_HEADER)
        self._may_be_raw = encoding == "deflate"  # some clients leave zlib's header out
        self._has_begun = False

    @property
    def is_whole(self) -> bool:
        """Whether the end has come."""
        return self._zlib.eof

    def feed(self, data: bytes, *, most: int) -> bytes:
        """Inflate the next piece.

        Args:
            most: Bytes that are of use: what would be more is cut behind one byte beyond them, however much it is.

        Raises:
            zlib.error: It is not such data.
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
            raise zlib.error("Something follows the end.")
        return inflated
