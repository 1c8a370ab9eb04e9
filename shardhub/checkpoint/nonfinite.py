"""Finding NaN and infinity in a tensor's bytes, by the bits of its dtype."""

from __future__ import annotations

# The unsigned integer type that holds an element, and the bits that are all set if it is not finite.
# F8_E4M3 and F8_E8M0 have NaN and no infinity.
_BITS: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "C64": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
    "F8_E8M0": ("u1", 0xFF),
}


def first_nonfinite(dtype: str, data: memoryview) -> int | None:
    """Index of the first element that is NaN or infinite; None if there is none, and for integers.

    Args:
        dtype: safetensors name of the elements' dtype.
        data: Whole elements, little-endian, aligned to their size.
    """
    bits = _BITS.get(dtype)
    if bits is None or not len(data):
        return None
    import numpy as np

    word, mask = bits
    exponents = np.bitwise_and(np.frombuffer(data, word), np.array(mask, word))
    if int(exponents.max()) != mask:
        return None
    index = int(np.argmax(exponents == mask))
    return index // 2 if dtype == "C64" else index
