"""Patterns as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hesse.core.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hesse.sparse.pattern import Pattern

_CELLS = 200  # pixels a side; larger matrices are binned
_FLAT = 5.0  # a figure's long side over its short one
_INK = "#1f3a5f"
_SEVERAL = "#9a9a9a"  # of pixels whose entries have several colors
# Okabe and Ito, Color universal design, 2008 (black left out), then the same ones darker: told apart by color-blind readers too
_PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442",
            "#00466e", "#8f6200", "#006148", "#804c69", "#2f7197", "#853a00", "#97902a")  # fmt: skip


def spy(pattern: Pattern, ax: Axes | None = None, colors: np.ndarray | None = None, columns: int | None = None) -> Axes:
    """Draw the entries of a pattern; large ones are binned, so that no entry gets lost between pixels.

    Args:
        pattern: to draw.
        ax: where; a new figure of the matrix's proportions without.
        colors: ``[nnz]``, a number for each entry: that of the product which shows it, counted from 0. Up to 14 have colors of
            their own and a legend, more get a scale. Pixels of entries with several colors are gray.
        columns: how many of them are products by forward mode, where the others are by reverse mode.

    Returns:
        The axes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingExtraError(
            "Patterns are drawn by matplotlib.", "it is not installed", "pip install 'hesse[report]'"
        ) from error
    rows, width = (max(1, size) for size in pattern.shape)
    if ax is None:
        tall = min(max(rows / width, 1 / _FLAT), _FLAT)
        ax = Figure(figsize=(5 / max(1.0, tall) + 0.6, 5 * min(1.0, tall) + 0.6), layout="constrained").add_subplot()
    count = 1 if colors is None or not len(colors) else int(colors.max()) + 1
    few = count <= len(_PALETTE)
    inks: Any = colormaps["viridis"] if not few else ListedColormap([_INK] if colors is None else list(_PALETTE[:count]))
    pixels = _pixels(pattern, colors, count)
    several = bool((pixels == count).any())
    stretched = not 1 / _FLAT <= rows / width <= _FLAT
    extent = (-0.5, width - 0.5, rows - 0.5, -0.5)
    image = ax.imshow(pixels, cmap=inks.with_extremes(over=_SEVERAL), vmin=-0.5, vmax=count - 0.5, interpolation="nearest",
                      extent=extent, aspect="auto" if stretched else "equal")  # fmt: skip
    if colors is not None and few:
        _legend(ax, inks.colors, columns, several)
    elif colors is not None and ax.figure is not None:
        ax.figure.colorbar(image, ax=ax, label="product (gray: several)" if several else "product", shrink=0.8)
    between = "\n" if rows > 2 * width else ", "
    entries = f"{pattern.nnz:,} entr{'y' if pattern.nnz == 1 else 'ies'}"
    ax.set_title(f"{pattern.shape[0]:,} × {pattern.shape[1]:,}{between}{entries}", fontsize="medium", loc="left")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    ax.set_xlabel("column")
    ax.set_ylabel("row")
    return ax


def _pixels(pattern: Pattern, colors: np.ndarray | None, count: int) -> np.ndarray:
    """An image with the number of its entries' product in each pixel that has some, `count` for several, NaN elsewhere."""
    scale = [max(1.0, size / _CELLS) for size in pattern.shape]
    height, width = (max(1, int(np.ceil(size / step))) for size, step in zip(pattern.shape, scale, strict=True))
    image = np.full((height, width), np.nan)
    y, x = (pattern.rows / scale[0]).astype(np.int64), (pattern.indices / scale[1]).astype(np.int64)
    image[y, x] = 0.0 if colors is None else colors
    if colors is not None:
        other = image[y, x] != colors
        image[y[other], x[other]] = count
    return image


def _legend(ax: Axes, palette: list[str], columns: int | None, several: bool) -> None:
    from matplotlib.patches import Patch

    names = [f"{n}" for n in range(len(palette))]
    if columns is not None:
        names = [f"column {n}" if n < columns else f"row {n - columns}" for n in range(len(palette))]
    names, palette = names + ["several"] * several, palette + [_SEVERAL] * several
    patches = [Patch(color=color, label=name) for color, name in zip(palette, names, strict=True)]
    ax.legend(handles=patches, title="product", loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0,
              frameon=False, handlelength=1.0, handleheight=1.0, fontsize="small", title_fontsize="small")  # fmt: skip
