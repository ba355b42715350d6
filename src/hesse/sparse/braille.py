"""Patterns as text: each Braille character shows two columns and four rows of dots."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WIDTH, _HEIGHT = 40, 20  # characters
_NARROW = 16  # dots
_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # Unicode 16, block U+2800: dots by row and column


def braille(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> str:
    """A picture of a pattern, scaled down where it is large.

    Args:
        rows: ``[nnz]``, of the entries.
        columns: ``[nnz]``.
        shape: of the matrix.

    Returns:
        At most 20 lines of at most 40 characters, framed.
    """
    scale = max(1.0, shape[0] / (4 * _HEIGHT), shape[1] / (2 * _WIDTH))
    down, across = (min(scale, max(1.0, size / _NARROW)) for size in shape)  # a narrow side keeps some of its dots
    height, width = -(-int(np.ceil(shape[0] / down)) // 4), -(-int(np.ceil(shape[1] / across)) // 2)
    y, x = (rows / down).astype(np.int64), (columns / across).astype(np.int64)
    cells = np.zeros((height, width), np.int64)
    np.bitwise_or.at(cells, (y // 4, x // 2), _BITS[y % 4, x % 2])
    lines = ["".join(chr(0x2800 + cell) for cell in line) for line in cells]
    if height == 1:
        return f"[{lines[0]}]"
    return "\n".join([f"⎡{lines[0]}⎤", *(f"⎢{line}⎥" for line in lines[1:-1]), f"⎣{lines[-1]}⎦"])
