"""A pattern and the colors that say which of its columns and rows share a product."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from hesse.core.errors import StructureError
from hesse.core.storage import load_tensors, save_tensors
from hesse.sparse.colors.acyclic import is_acyclic
from hesse.sparse.colors.bidirectional import is_bidirectional, readable
from hesse.sparse.colors.columns import are_columns_apart
from hesse.sparse.colors.graph import without_diagonal
from hesse.sparse.colors.star import counts_of_colors, is_star
from hesse.sparse.pattern import Indices, Pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["column", "row", "bidirectional", "star", "acyclic"]
KINDS: tuple[Kind, ...] = ("column", "row", "bidirectional", "star", "acyclic")
_KIND = "colored pattern"


@dataclass(frozen=True, eq=False, repr=False)
class ColoredPattern:
    """A pattern and a coloring of it, valid for certain.

    Args:
        pattern: of the matrix.
        kind: "column" and "row": no two columns (rows) of one color have an entry in the same row (column). "bidirectional":
            every entry is alone in its row with the color of its column, or in its column with the color of its row. "star",
            "acyclic": colors of the unknowns of a symmetric matrix, whose entries follow directly, or by substitution.
        column_colors: ``[columns]``, int64, from 0 on; -1 for columns that need no product.
        row_colors: ``[rows]``, likewise.
        found_by: the order of the greedy coloring, or the formula, that gave the fewest colors.

    Raises:
        StructureError: colors that do not belong to the pattern, or do not tell its entries apart, with two of these.
    """

    pattern: Pattern
    kind: Kind
    column_colors: Indices
    row_colors: Indices
    found_by: str = "given"

    def __post_init__(self) -> None:
        sizes = len(self.row_colors), len(self.column_colors)
        if sizes != self.pattern.shape:
            raise StructureError("A coloring has a color for each row and column, or -1.",
                                 f"{sizes[0]} and {sizes[1]} colors for a pattern of shape {self.pattern.shape}",
                                 "color this pattern by hesse.coloring(pattern)")  # fmt: skip
        if not self._is_valid():
            raise StructureError(f"The colors of kind '{self.kind}' tell the entries of a pattern apart.", self._clash(),
                                 "color this pattern by hesse.coloring(pattern)")  # fmt: skip

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
        check = is_star if self.kind == "star" else is_acyclic
        return check(without_diagonal(pattern), self.column_colors)

    def _clash(self) -> str:
        """Two entries that a product mixes, or what else is wrong."""
        pattern = self.pattern
        if self.kind in ("star", "acyclic") and not pattern.is_symmetric:
            row, column = pattern.missing(pattern.T)[0]
            return f"an entry at ({column}, {row}) and none at ({row}, {column})"
        if self.kind == "acyclic":
            return "a cycle of entries in two colors, or neighbors in one"
        if self.kind == "star":
            graph = without_diagonal(pattern)
            shared = counts_of_colors(graph, self.column_colors) > 1
            same = self.column_colors[graph.rows] == self.column_colors[graph.indices]
            worst = int((shared | same).argmax())
            return f"the entry at ({graph.rows[worst]}, {graph.indices[worst]}) shares its product at both of its ends"
        by_column, by_row = readable(pattern, self.column_colors, self.row_colors)
        lost = {"column": ~by_column, "row": ~by_row}.get(self.kind, ~(by_column | by_row))
        place = int(lost.argmax())
        return (
            f"the entry at ({pattern.rows[place]}, {pattern.indices[place]}) shares every product that it is in, or is in none"
        )

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
        if self.kind in ("star", "acyclic"):
            return spy(pattern, ax, self.column_colors[pattern.indices])
        readable_by_column, _ = readable(pattern, self.column_colors, self.row_colors)
        by_column, by_row = self.column_colors[pattern.indices], self.row_colors[pattern.rows]
        return spy(pattern, ax, np.where(readable_by_column, by_column, by_row + self.columns))

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
        save_tensors(path, {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}, _KIND, header)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> ColoredPattern:
        """Read what `save` has written.

        Args:
            path: of the file.

        Returns:
            The same pattern and colors, validated again.

        Raises:
            DataError: no such file of hesse. MissingExtraError: safetensors is not installed.
        """
        tensors, header = load_tensors(path, _KIND)
        rows, columns = header["shape"]
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        pattern = Pattern((rows, columns), arrays["indptr"], arrays["indices"])
        return ColoredPattern(pattern, header["kind"], arrays["column_colors"], arrays["row_colors"], header["found_by"])
