"""A pattern and the colors that say which of its columns and rows share a product."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from hesse.core.errors import DataError, StructureError
from hesse.core.storage import load_tensors, save_tensors
from hesse.sparse.colors.acyclic import is_acyclic
from hesse.sparse.colors.bidirectional import is_bidirectional, readable
from hesse.sparse.colors.columns import are_columns_apart
from hesse.sparse.colors.graph import without_diagonal
from hesse.sparse.colors.star import is_star, readable_symmetric
from hesse.sparse.compressed import Indices, frozen, integers
from hesse.sparse.pattern import Pattern, pattern_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["column", "row", "bidirectional", "star", "acyclic"]
KINDS: tuple[Kind, ...] = ("column", "row", "bidirectional", "star", "acyclic")
_KIND = "colored pattern"
_ASKED = "A coloring has a color for each row and column, or -1."
_REMEDY = "color this pattern by hesse.coloring(pattern)"


@dataclass(frozen=True, eq=False, repr=False)
class ColoredPattern:
    """A pattern and a coloring of it, valid for certain. Immutable: the arrays are copied and read-only.

    Args:
        pattern: of the matrix, or what has one (see `Pattern.of`).
        kind: "column" and "row": no two columns (rows) of one color have an entry in the same row (column). "bidirectional":
            every entry is alone in its row with the color of its column, or in its column with the color of its row. "star":
            of the unknowns of a symmetric matrix: every entry or its mirror image is alone in its row with the color of its
            column. "acyclic": likewise, but any two colors make a forest, and entries follow by substitution.
        column_colors: ``[columns]``, integers from 0 on; -1 for columns that need no product.
        row_colors: ``[rows]``, likewise.
        found_by: the order of the greedy coloring, or the formula, that gave the fewest colors.

    Colors that no column (row) has are left out, the others numbered anew in their order.

    Raises:
        StructureError: an unknown kind, colors that do not belong to the pattern, or that do not tell its entries apart, with
            one of these.
    """

    pattern: Pattern
    kind: Kind
    column_colors: Indices
    row_colors: Indices
    found_by: str = "given"

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", Pattern.of(self.pattern))
        if self.kind not in KINDS:
            raise StructureError(f"kind is one of {', '.join(map(repr, KINDS))}.", repr(self.kind), "pass one of these")
        for name in ("column_colors", "row_colors"):
            object.__setattr__(self, name, _numbered(integers(getattr(self, name), name, _ASKED), name))
        sizes = len(self.row_colors), len(self.column_colors)
        if sizes != self.pattern.shape:
            found = f"{sizes[0]} and {sizes[1]} colors for a pattern of shape {self.pattern.shape}"
            raise StructureError(_ASKED, found, _REMEDY)
        spare = {"row": self.columns, "bidirectional": 0}.get(self.kind, self.rows)
        if spare:
            raise StructureError(f"A coloring of kind '{self.kind}' has colors on one side only.",
                                 f"{spare} on the other side too", "pass -1 there, or kind='bidirectional'")  # fmt: skip
        if not self._is_valid():
            asked = f"The colors of kind '{self.kind}' tell the entries of a pattern apart."
            raise StructureError(asked, self._clash(), _REMEDY)

    @property
    def columns(self) -> int:
        """Colors of columns: products with the matrix, by forward mode (by forward over reverse for a Hessian)."""
        return int(self.column_colors.max(initial=-1)) + 1

    @property
    def rows(self) -> int:
        """Colors of rows: products with its transpose, by reverse mode."""
        return int(self.row_colors.max(initial=-1)) + 1

    @property
    def colors(self) -> int:
        """Products in all."""
        return self.columns + self.rows

    def _is_valid(self) -> bool:
        pattern = self.pattern
        if self.kind == "column":
            return are_columns_apart(pattern, self.column_colors)
        if self.kind == "row":
            return are_columns_apart(pattern.T, self.row_colors)
        if self.kind == "bidirectional":
            return is_bidirectional(pattern, self.column_colors, self.row_colors)
        if not pattern.is_symmetric:
            return False
        if self.kind == "star":
            return is_star(pattern, self.column_colors)
        return is_acyclic(without_diagonal(pattern), self.column_colors)

    def _clash(self) -> str:
        """An entry that every product mixes, or what else is wrong."""
        pattern = self.pattern
        if self.kind in ("star", "acyclic") and not pattern.is_symmetric:
            return asymmetry(pattern)
        if self.kind == "acyclic":
            return "a cycle of entries in two colors, neighbors in one, or an unknown without color"
        if self.kind == "star":
            here = readable_symmetric(pattern, self.column_colors)
            worst = int((here | here[pattern.by_column]).argmin())
            return f"the entry at ({pattern.rows[worst]}, {pattern.indices[worst]}) shares its product at both of its ends"
        by_column, by_row = readable(pattern, self.column_colors, self.row_colors)
        place = int((by_column | by_row).argmin())
        return (
            f"the entry at ({pattern.rows[place]}, {pattern.indices[place]}) shares every product that it is in, or is in none"
        )

    def _known(self) -> tuple[Any, ...]:
        return self.pattern, self.kind, self.column_colors.tobytes(), self.row_colors.tobytes(), self.found_by

    def __eq__(self, other: object) -> bool:
        return self._known() == other._known() if isinstance(other, ColoredPattern) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._known())

    def __copy__(self) -> ColoredPattern:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ColoredPattern:
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for array in (self.column_colors, self.row_colors):
            array.flags.writeable = False

    def __repr__(self) -> str:
        parts = [f"{n} {side} color{'s' * (n != 1)}" for n, side in ((self.columns, "column"), (self.rows, "row")) if n]
        if self.kind in ("star", "acyclic"):
            parts = [f"{self.columns} {self.kind} color{'s' * (self.columns != 1)}"]
        rows, columns = self.pattern.shape
        size = f"{rows} x {columns}, {self.pattern.nnz} entries, {100 * self.pattern.density:.3g} %"
        return f"ColoredPattern({size}: {' and '.join(parts) or 'no colors'}, {self.found_by})"

    def plot(self, ax: Axes | None = None) -> Axes:
        """A spy plot in which each entry has the color of the product that shows it.

        Args:
            ax: where to draw; a new figure without.

        Returns:
            The axes drawn on; nothing is shown.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from hesse.sparse.plot import spy

        pattern = self.pattern
        colors = self.column_colors
        if self.kind == "star":
            here = readable_symmetric(pattern, colors)
            return spy(pattern, ax, np.where(here, colors[pattern.indices], colors[pattern.rows]))
        if self.kind == "acyclic":
            return spy(pattern, ax, colors[pattern.indices])
        readable_by_column, _ = readable(pattern, colors, self.row_colors)
        by_row = self.row_colors[pattern.rows] + self.columns
        return spy(pattern, ax, np.where(readable_by_column, colors[pattern.indices], by_row), self.columns)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a safetensors file.

        Args:
            path: of the file.

        Raises:
            MissingExtraError: safetensors is not installed.
        """
        arrays = {"indptr": self.pattern.indptr, "indices": self.pattern.indices,
                  "column_colors": self.column_colors, "row_colors": self.row_colors}  # fmt: skip
        header = {"shape": list(self.pattern.shape), "kind": self.kind, "found_by": self.found_by}
        save_tensors(path, {name: torch.tensor(a) for name, a in arrays.items()}, _KIND, header)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> ColoredPattern:
        """Read what `save` has written.

        Args:
            path: of the file.

        Returns:
            The same pattern and colors, validated again.

        Raises:
            DataError: no such file of hesse, or not a valid coloring. MissingExtraError: safetensors is not installed.
        """
        tensors, header = load_tensors(path, _KIND)
        pattern, colors = pattern_of(tensors, header), [tensors[name].numpy() for name in ("column_colors", "row_colors")]
        try:
            return ColoredPattern(pattern, header["kind"], colors[0], colors[1], header["found_by"])
        except StructureError as error:
            raise DataError("A file of a colored pattern holds a valid coloring.", error.found, "save it again") from error


def asymmetry(pattern: Pattern) -> str:
    """What keeps a pattern from being symmetric, for an error."""
    if pattern.shape[0] != pattern.shape[1]:
        return f"one of shape {pattern.shape}"
    row, column = pattern.missing(pattern.T)[0]
    return f"an entry at ({column}, {row}) and none at ({row}, {column})"


def _numbered(colors: Indices, name: str) -> Indices:
    """Read-only colors without gaps."""
    if len(colors) and colors.min() < -1:
        raise StructureError("Colors are numbers from 0 on, or -1 for none.", f"{int(colors.min())} in {name}", _REMEDY)
    top = int(colors.max(initial=-1))
    if top > len(colors) or np.bincount(colors + 1, minlength=top + 2)[1:].min(initial=1) == 0:
        names, numbers = np.unique(colors, return_inverse=True)
        return frozen(numbers - (names[0] < 0), own=True)
    return frozen(colors)
