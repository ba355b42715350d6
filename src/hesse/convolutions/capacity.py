"""The capacity matrix: what the inverse on the torus does between the unknowns of the boundary, gathered, never multiplied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.convolutions.fields import Columns, Skew
from hesse.convolutions.torus import Slots, Torus, unraveled

_CHUNK = 1 << 22  # numbers that are gathered at once


@dataclass(frozen=True)
class Response:
    """The answers of one block of the inverse on the torus to unit vectors.

    Attributes:
        table: as of `impulse_response`.
        channels: groups, row channels, column channels.
        phases: of rows and columns.
    """

    table: Tensor
    channels: tuple[int, int, int]
    phases: tuple[int, int]

    def between(self, rows: Columns, columns: Columns, torus: Torus, skew: Skew) -> Tensor:
        """``rows^H inverse columns``: ``[groups, row slots * channels, column slots * channels]``. Differentiable."""
        g, a, b = self.channels
        count, width = len(rows.slots), len(columns.slots)
        step = max(1, _CHUNK // max(1, width * g * a * b))
        parts = [
            self._part(rows, columns, torch.arange(start, min(start + step, count)), torus, skew)
            for start in range(0, count, step)
        ]
        return torch.cat(parts, dim=1) if parts else self.table.new_zeros(g, 0, width * b)

    def _part(self, rows: Columns, columns: Columns, some: Tensor, torus: Torus, skew: Skew) -> Tensor:
        g, a, b = self.channels
        total: Tensor | None = None
        for row_slots, row_factor in rows.terms():
            for column_slots, column_factor in columns.terms():
                places, signs = self._places(row_slots[some], column_slots, torus, skew)
                block = self.table.index_select(0, places.flatten().to(self.table.device))
                block = block.reshape(len(some), len(column_slots), g, a, b)
                factor = signs if row_factor is None else signs * row_factor[some][:, None]
                factor = factor if column_factor is None else factor * column_factor
                if not (row_factor is None and column_factor is None and not any(skew)):
                    block = block * factor[:, :, None, None, None].to(block.device, block.real.dtype)
                total = block if total is None else total + block
        assert total is not None
        return total.permute(2, 0, 3, 1, 4).reshape(g, len(some) * a, -1)

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
