"""Decoding a xorb as it arrives.

A xorb is a sequence of chunks. Each has a header of 8 bytes, little-endian: version 0, the chunk's length as sent
(3 bytes), its compression, and its length decoded (3 bytes). A footer may follow, which begins with `XETBLOB`: it
repeats what the headers say. Source: xet-core 1.8.0, xorb_object.
"""

from __future__ import annotations

from collections.abc import Callable

import lz4.frame

from shardhub.localhub.refusals import bad_request, too_large

# The protocol's own limits. A chunk is sent uncompressed where compression does not shorten it.
MAX_CHUNK_BYTES = 128 << 10
MAX_CHUNKS = 8 << 10
MAX_XORB_BYTES = 64 << 20
_HEADER_BYTES = 8
_FOOTER_MARK = b"XETBLOB"
_PLAIN, _LZ4, _GROUPED_LZ4 = 0, 1, 2


class XorbDecoder:
    """Decodes one xorb; holds a chunk in memory at a time.

    Args:
        write: Takes each chunk's decoded bytes, in order.

    Attributes:
        lengths: Decoded lengths of the chunks so far.
        size_bytes: Their sum.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.lengths: list[int] = []
        self.size_bytes = 0
        self._write = write
        self._pending = bytearray()
        self._in_footer = False

    def feed(self, data: bytes) -> None:
        """Decode the next bytes.

        Raises:
            Refusal: 400 a header or chunk is malformed; 413 the xorb is larger than the protocol allows.
        """
        if self._in_footer:
            return
        self._pending += data
        start = 0
        while len(self._pending) - start >= _HEADER_BYTES:
            header = bytes(self._pending[start : start + _HEADER_BYTES])
            if header.startswith(_FOOTER_MARK):
                self._in_footer = True
                start = len(self._pending)
                break
            num_sent, compression, num_decoded = _parse_header(header)
            stop = start + _HEADER_BYTES + num_sent
            if len(self._pending) < stop:
                break
            self._take(bytes(self._pending[start + _HEADER_BYTES : stop]), compression, num_decoded)
            start = stop
        del self._pending[:start]

    def finish(self) -> None:
        """Check that the xorb ended with a whole chunk.

        Raises:
            Refusal: 400, the xorb is cut short or empty.
        """
        if self._pending or not self.lengths:
            raise bad_request("The xorb ends in the middle of a chunk: upload it again.")

    def _take(self, sent: bytes, compression: int, num_decoded: int) -> None:
        if len(self.lengths) == MAX_CHUNKS or self.size_bytes + num_decoded > MAX_XORB_BYTES:
            raise too_large("The xorb", MAX_XORB_BYTES)
        self._write(_decode(sent, compression, num_decoded))
        self.lengths.append(num_decoded)
        self.size_bytes += num_decoded


def _parse_header(header: bytes) -> tuple[int, int, int]:
    """The length as sent, the compression and the length decoded of a chunk."""
    num_sent, num_decoded = (int.from_bytes(header[start : start + 3], "little") for start in (1, 5))
    if header[0] != 0 or header[4] not in (_PLAIN, _LZ4, _GROUPED_LZ4):
        raise bad_request(f"The chunk has version {header[0]} and compression {header[4]}, which this Hub cannot read.")
    if not 0 < num_decoded <= MAX_CHUNK_BYTES or num_sent > 2 * MAX_CHUNK_BYTES:
        raise bad_request(f"The chunk has {num_decoded} bytes, and the limit is {MAX_CHUNK_BYTES}.")
    return num_sent, header[4], num_decoded


def _decode(sent: bytes, compression: int, num_decoded: int) -> bytes:
    decoded = sent
    if compression != _PLAIN:
        decompressor = lz4.frame.LZ4FrameDecompressor()
        try:
            # One byte more than announced: a chunk that decodes to gigabytes is noticed at its first surplus byte.
            decoded = decompressor.decompress(sent, max_length=num_decoded + 1)
        except RuntimeError as error:
            raise bad_request("A chunk is damaged: upload the xorb again.") from error
    if len(decoded) != num_decoded:
        raise bad_request(f"A chunk does not decode to the {num_decoded} bytes that its header announces.")
    return _ungrouped(decoded) if compression == _GROUPED_LZ4 else decoded


def _ungrouped(data: bytes) -> bytes:
    """Undo the grouping that collects every fourth byte, which compresses floats better."""
    import numpy as np

    grouped = np.frombuffer(data, dtype=np.uint8)
    plain = np.empty_like(grouped)
    start = 0
    for index in range(4):
        stop = start + len(plain[index::4])
        plain[index::4] = grouped[start:stop]
        start = stop
    return plain.tobytes()
