"""Tensors as a few flat buffers, one a dtype, so that one all-reduce carries them all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.space import Space


@dataclass(frozen=True)
class Layout:
    """Shapes and dtypes of tensors that are summed.

    Attributes:
        shapes: of each tensor.
        dtypes: of each; sums of 16-bit numbers are taken, and come back, in float32.
        device: where the sums are wanted.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    device: torch.device

    @classmethod
    def of_space(cls, space: Space, *batch: int) -> Layout:
        """That of the vectors of a space, with batch axes in front."""
        return cls(tuple((*batch, *shape) for shape in space.shapes), space.dtypes, space.device)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Layout:
        """That of given tensors."""
        device = tensors[0].device if tensors else torch.device("cpu")
        return cls(tuple(tuple(t.shape) for t in tensors), tuple(t.dtype for t in tensors), device)

    def __str__(self) -> str:
        """What has to be the same on all processes."""
        size = sum(math.prod(shape) for shape in self.shapes)
        kinds = [*sorted({str(d)[6:] for d in self.dtypes}), *([self.device.type] if self.device.type != "cpu" else [])]
        return f"[{len(self.shapes)} tensors, {size} numbers, {', '.join(kinds)}]"


def pack(layout: Layout, tensors: Sequence[Tensor] | None) -> list[Tensor]:
    """One flat real buffer for each dtype, float32 or float64; zeros for None.

    Raises:
        StructureError: tensors of other shapes than the layout's.
    """
    if tensors is not None and tuple(tuple(t.shape) for t in tensors) != layout.shapes:
        found = f"{[tuple(t.shape) for t in tensors][:4]} where {list(layout.shapes)[:4]} belong"
        raise StructureError("What is summed over processes has one layout.", found, "make tensors of these shapes")
    buffers = []
    for real in _reals(layout):
        places = [i for i, dtype in enumerate(layout.dtypes) if _wide(dtype).to_real() == real]
        if tensors is None:
            size = sum(math.prod(layout.shapes[i]) * (2 if layout.dtypes[i].is_complex else 1) for i in places)
            buffers.append(torch.zeros(size, dtype=real, device=layout.device))
        else:
            buffers.append(torch.cat([_flat(tensors[i], layout.dtypes[i], layout.device) for i in places]))
    return buffers


def unpack(layout: Layout, buffers: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of `pack`, views of the buffers, in the dtypes in which they were summed."""
    found: dict[int, Tensor] = {}
    for real, buffer in zip(_reals(layout), buffers, strict=True):
        start = 0
        for i, dtype in enumerate(layout.dtypes):
            if _wide(dtype).to_real() != real:
                continue
            size = math.prod(layout.shapes[i]) * (2 if dtype.is_complex else 1)
            flat = buffer[start : start + size]
            start += size
            found[i] = (torch.view_as_complex(flat.reshape(-1, 2)) if dtype.is_complex else flat).reshape(layout.shapes[i])
    return [found[i] for i in range(len(layout.shapes))]


def _reals(layout: Layout) -> list[torch.dtype]:
    return [r for r in (torch.float64, torch.float32) if any(_wide(dtype).to_real() == r for dtype in layout.dtypes)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums are taken."""
    if dtype in (torch.float64, torch.complex64, torch.complex128):
        return dtype
    return torch.float32 if dtype.is_floating_point else torch.float64


def _flat(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    part = tensor.detach().to(device=device, dtype=_wide(dtype)).reshape(-1)
    return torch.view_as_real(part.resolve_conj()).reshape(-1) if part.is_complex() else part.resolve_neg()
