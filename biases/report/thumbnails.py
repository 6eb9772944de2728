"""Maps as small pictures inside the page: a PNG with a pixel a cell, as a data URI."""

from __future__ import annotations

import base64
import functools
import struct
import zlib
from collections.abc import Sequence

from biases.report.charts.gallery import DIVERGING, SEQUENTIAL, shade

LEVELS = 64
BLANK = LEVELS
"""Index of the transparent colour in the palette."""


def thumbnail(values: Sequence[Sequence[float | None]], *, symmetric: bool = False) -> str:
    """``data:image/png;base64,...`` of rows of numbers, from the least to the largest; ``None`` is transparent.

    Args:
        values: rows of one length.
        symmetric: the colours are centred on zero.
    """
    known = [value for row in values for value in row if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    factor = (LEVELS - 1) / (high - low) if high > low else 0.0
    lines = [bytes(BLANK if v is None else round((v - low) * factor) for v in row) for row in values]
    # Every line begins with its filter: 0, none.
    pixels = zlib.compress(b"".join(b"\0" + each for each in lines), 9)
    header = struct.pack(">IIBBBBB", len(values[0]), len(values), 8, 3, 0, 0, 0)
    opaque = b"\xff" * LEVELS + b"\0"
    chunks = ((b"IHDR", header), (b"PLTE", _palette(symmetric)), (b"tRNS", opaque), (b"IDAT", pixels), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in chunks)
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@functools.cache
def _palette(symmetric: bool) -> bytes:
    """Red, green and blue of every level, in the colours of the charts, and of the blank."""
    scale = DIVERGING if symmetric else SEQUENTIAL
    colours = [shade(level / (LEVELS - 1), scale) for level in range(LEVELS)]
    return bytes(value for colour in [*colours, (0, 0, 0)] for value in colour)
