"""Patterns as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hesse.core.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hesse.sparse.pattern import Pattern

_CELLS = 600  # pixels a side; larger matrices are binned


def spy(pattern: Pattern, ax: Axes | None = None, colors: np.ndarray | None = None) -> Axes:
    """Draw the entries of a pattern; large ones are binned, so that no entry gets lost between pixels.

    Args:
        pattern: to draw.
        ax: where; a new figure without.
        colors: ``[nnz]``, a number for each entry, shown as its color; small matrices only are worth it.

    Returns:
        The axes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "Patterns are drawn by matplotlib.", "it is not installed", "pip install 'hesse[report]'"
        ) from error
    ax = ax if ax is not None else Figure(figsize=(5, 5), layout="constrained").add_subplot()
    scale = max(1.0, max(pattern.shape) / _CELLS)
    height, width = (max(1, int(np.ceil(size / scale))) for size in pattern.shape)
    image = np.full((height, width), np.nan)
    y, x = (pattern.rows / scale).astype(np.int64), (pattern.indices / scale).astype(np.int64)
    image[y, x] = 1.0 if colors is None else colors
    extent = (-0.5, pattern.shape[1] - 0.5, pattern.shape[0] - 0.5, -0.5)
    cmap = "gray" if colors is None else "turbo"
    ax.imshow(image, cmap=cmap, vmin=0 if colors is None else None, interpolation="nearest", extent=extent, aspect="equal")
    ax.set_title(f"{pattern.shape[0]} × {pattern.shape[1]}, {pattern.nnz} entries", fontsize="medium")
    ax.set_xlabel("column")
    ax.set_ylabel("row")
    return ax
