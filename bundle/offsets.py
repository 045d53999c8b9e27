"""Code point offsets → the units that other languages count in.

Everything inside Slipway counts code points, as Python does. A caller in JavaScript, Java or C# counts UTF-16 code
units, one in Go or Rust counts bytes of UTF-8; for them an answer's offsets are converted at the very end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

OffsetUnit = Literal["codepoint", "utf16", "byte"]


def converter(text: str, unit: OffsetUnit) -> Callable[[int], int]:
    """A function from an offset into ``text`` in code points to the same place in another unit.

    Args:
        text: any text without lone surrogates.
        unit: ``codepoint``; ``utf16``: code units of UTF-16; ``byte``: bytes of UTF-8.

    Returns:
        for 0 ≤ offset ≤ len(text): how many units stand before it. O(len(text)) once, then O(1) a call.

    >>> converter("好😀a", "utf16")(2), converter("好😀a", "byte")(2)
    (3, 7)
    """
    if unit == "codepoint" or text.isascii():
        return lambda offset: offset
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    if unit == "utf16":
        widths = 1 + (points > 0xFFFF)
    else:
        widths = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    before = np.concatenate([[0], np.cumsum(widths, dtype=np.int64)])
    return lambda offset: int(before[offset])
