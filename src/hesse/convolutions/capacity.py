"""The capacity matrix: what the inverse on the torus does between the unknowns of the boundary, gathered, never multiplied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.convolutions.fields import Columns, Skew
from hesse.convolutions.torus import Slots, Torus, unraveled

_CHUNK = 1 << 24  # rows of the table that are gathered at once


@dataclass(frozen=True)
class Response:
    """The answers of one block of the inverse on the torus to unit vectors.

    Attributes:
        table: as of `impulse_response`.
        phases: of rows and columns.
    """

    table: Tensor
    phases: tuple[int, int]

    def between(self, rows: Columns, columns: Columns, torus: Torus, skew: Skew) -> Tensor:
        """``rows^H inverse columns``: ``[groups, row slots * channels, column slots * channels]``. Differentiable."""
        g, a, _, b = self.table.shape
        count, width = len(rows.slots), len(columns.slots)
        step = max(1, _CHUNK // max(1, width * g * a))
        parts = [
            self._part(rows, columns, torch.arange(start, min(start + step, count)), torus, skew)
            for start in range(0, count, step)
        ]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, dim=1) if parts else self.table.new_zeros(g, 0, width * b)

    def _part(self, rows: Columns, columns: Columns, some: Tensor, torus: Torus, skew: Skew) -> Tensor:
        g, a, places, b = self.table.shape
        table = self.table.reshape(-1, b)
        first = (places * torch.arange(g * a)).reshape(g, 1, a, 1)  # of the rows of the table, in the order of the result
        total: Tensor | None = None
        for row_slots, row_factor in rows.terms():
            for column_slots, column_factor in columns.terms():
                found, signs = self._places(row_slots[some], column_slots, torus, skew)
                index = first + found[:, None, :]
                block = table.index_select(0, index.flatten().to(table.device)).reshape(*index.shape, b)
                factor = signs if row_factor is None else signs * row_factor[some][:, None]
                factor = factor if column_factor is None else factor * column_factor
                if not (row_factor is None and column_factor is None and not any(skew)):
                    block = block * factor[:, None, :, None].to(block.device, block.real.dtype)
                total = block if total is None else total + block
        assert total is not None
        return total.reshape(g, len(some) * a, -1)

    def _places(self, rows: Slots, columns: Slots, torus: Torus, skew: Skew) -> tuple[Tensor, Tensor]:
        """Rows of the table, and the sign of the way between the slots, ``[rows, columns]``."""
        cells = torch.zeros(len(rows), len(columns), dtype=torch.int64)
        signs = torch.ones(len(rows), len(columns), dtype=torch.float64) if any(skew) else torch.ones(1, 1)
        first, second = unraveled(rows.cells, torus.size), unraveled(columns.cells, torus.size)
        for i, j, q, is_skew in zip(first, second, torus.size, skew, strict=True):
            away = i[:, None] - j[None, :]
            signs = torch.where(away < 0, -signs, signs) if is_skew else signs
            cells = cells * q + away % q
        phases = rows.phases[:, None] * self.phases[1] + columns.phases[None, :]
        return phases * torus.cells + cells, signs
