"""Closed-over tensors whose values a recorded path holds for: indices and masks, where the path was made for them alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class _Pin(NamedTuple):
    place: int
    tensor: Tensor
    version: int
    parts: list[Tensor]


class Pins:
    """Tells whether other values stand in the places of closed-over tensors than in the recorded run.

    Args:
        tensors: those of the recorded run, in their places.
        watches: which of them to compare. Of sparse ones it is the places of the entries.

    Values on the CPU are compared at each call, which costs less than any use of them; so a write that no version counter
    knows of (by NumPy, through ``.data``) is seen as well. Elsewhere an object that was not written to is taken for the same.
    """

    def __init__(self, tensors: Sequence[Tensor], watches: Callable[[Tensor], bool]) -> None:
        self._pins = [
            _Pin(place, t.detach(), t._version, [part.clone() for part in _parts(t)])
            for place, t in enumerate(tensors)
            if not t.is_inference() and watches(t)
        ]

    def __len__(self) -> int:
        return len(self._pins)

    def changed(self, tensors: Sequence[Tensor]) -> list[str]:
        """What stands there now with other values, in words.

        Args:
            tensors: the closed-over ones of a call, of the recorded dtypes and shapes.

        Returns:
            Dtype and shape of each.

        Cost: no derivatives; a comparison of the values.
        """
        return [f"{t.dtype} of shape {tuple(t.shape)}" for pin in self._pins if not _holds(pin, t := tensors[pin.place])]


def _holds(pin: _Pin, tensor: Tensor) -> bool:
    if tensor.device.type != "cpu" and tensor._version == pin.version and _address(tensor) == _address(pin.tensor):
        return True
    with torch.no_grad():
        return all(map(torch.equal, _parts(tensor), pin.parts))


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout is torch.strided else tensor.values().data_ptr()


def _parts(tensor: Tensor) -> list[Tensor]:
    """What is compared: all values, or the places of a sparse tensor's entries."""
    own = tensor.detach()
    if own.layout is torch.strided:
        return [own]
    if own.layout is torch.sparse_coo:
        return [own._indices()]
    if own.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [own.crow_indices(), own.col_indices()]
    return [own.ccol_indices(), own.row_indices()]
