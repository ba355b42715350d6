"""Numbers on a torus: images put in and taken out, products with block symbols, and columns of unit vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.convolutions.symbol import from_frequencies, to_frequencies
from hesse.convolutions.torus import Slots, Torus

Skew = tuple[bool, ...]


@dataclass(frozen=True)
class Columns:
    """Unit vectors at slots of one side of the torus, minus those at slots that are copied.

    Attributes:
        on_inputs: whether they are input slots.
        slots: where the ones stand, each for every channel: column ``(slot, channel)``.
        copied: where the minus ones stand; None without any.
        copies: of each column whether it has a minus one.
    """

    on_inputs: bool
    slots: Slots
    copied: Slots | None = None
    copies: Tensor | None = None

    def terms(self) -> list[tuple[Slots, Tensor | None]]:
        """Slots with their factors."""
        if self.copied is None or self.copies is None:
            return [(self.slots, None)]
        return [(self.slots, None), (self.copied, -self.copies.to(torch.float64))]

    def take(self, field: Tensor, torus: Torus) -> Tensor:
        """Products with the columns: ``[k, groups, channels, phases * cells] -> [k, groups, slots * channels]``."""
        total: Tensor | None = None
        for slots, factor in self.terms():
            part = field.index_select(-1, flat(slots, torus, field.device))
            part = part if factor is None else part * factor.to(part.device)
            total = part if total is None else total + part
        assert total is not None
        return total.transpose(-1, -2).flatten(-2)

    def add(self, field: Tensor, numbers: Tensor, torus: Torus) -> Tensor:
        """The field plus the columns times numbers ``[k, groups, slots * channels]``."""
        parts = numbers.unflatten(-1, (-1, field.shape[-2])).transpose(-1, -2)
        for slots, factor in self.terms():
            part = parts if factor is None else parts * factor.to(parts.device)
            field = field.index_add(-1, flat(slots, torus, field.device), part)
        return field


def flat(slots: Slots, torus: Torus, device: torch.device) -> Tensor:
    """Places in the last axis of a field."""
    return (slots.phases * torus.cells + slots.cells).to(device)


def embed(images: Tensor, slots: Slots, groups: int, torus: Torus, phases: int) -> Tensor:
    """``[k, c, *size] -> [k, groups, c / groups, phases * cells]``, zero outside of the slots."""
    k = images.shape[0]
    field = images.new_zeros(k, groups, images.shape[1] // groups, phases * torus.cells)
    return field.index_copy(-1, flat(slots, torus, images.device), images.reshape(*field.shape[:3], len(slots)))


def extract(field: Tensor, slots: Slots, shape: tuple[int, ...], torus: Torus) -> Tensor:
    """Undo `embed`."""
    return field.index_select(-1, flat(slots, torus, field.device)).reshape(field.shape[0], *shape)


def spectrum(field: Tensor, torus: Torus, skew: Skew) -> Tensor:
    """``[k, groups, channels, phases * cells] -> [frequencies, groups, channels * phases, k]``."""
    k, groups = field.shape[:2]
    waves = to_frequencies(field.reshape(k, groups, -1, *torus.size), len(torus.size), skew)
    return waves.flatten(3).permute(3, 1, 2, 0).contiguous()


def from_spectrum(waves: Tensor, torus: Torus, skew: Skew, dtype: torch.dtype, phases: int) -> Tensor:
    """Undo `spectrum`."""
    shape = (*torus.size[:-1], torus.size[-1] // 2 + 1 if not (dtype.is_complex or any(skew)) else torus.size[-1])
    images = waves.permute(3, 1, 2, 0)
    field = from_frequencies(images.reshape(*images.shape[:3], *shape), torus.size, dtype, skew)
    k, groups = field.shape[:2]
    return field.reshape(k, groups, -1, phases * torus.cells)


def adjoint_product(blocks: Tensor, waves: Tensor) -> Tensor:
    """``blocks^H waves``, five times as fast for single images as PyTorch's product with a transposed matrix."""
    return (waves.mH @ blocks).mH


def impulse_response(block: Tensor, torus: Torus, skew: Skew, dtype: torch.dtype, phases: tuple[int, int]) -> Tensor:
    """Answers to unit vectors at cell 0: ``[frequencies, groups, rows, columns] -> [groups, rows, places, columns]``.

    The places are ``(row phase, column phase, cell)``; phases no longer count as channels.
    """
    shape = (*torus.size[:-1], torus.size[-1] // 2 + 1 if not (dtype.is_complex or any(skew)) else torus.size[-1])
    waves = block.movedim(0, -1)
    table = from_frequencies(waves.reshape(*waves.shape[:3], *shape), torus.size, dtype, skew)
    g, a, b = table.shape[:3]
    table = table.reshape(g, a // phases[0], phases[0], b // phases[1], phases[1], torus.cells)
    return table.permute(0, 1, 2, 4, 5, 3).reshape(g, a // phases[0], -1, b // phases[1])
