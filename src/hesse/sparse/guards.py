"""Watches the constants that a pattern was made with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Watched:
    tensor: Tensor
    version: int
    digest: bytes


class Guard:
    """Tells whether tensors have changed since a pattern made use of their values.

    Their version counters are read first, their contents where these have moved. What leaves no trace in a counter (writes
    through ``.data``, another tensor in the place of one) is for those to find who have the tensors at hand.

    Args:
        tensors: constants from outside of the function, of any layout.

    Cost: one pass over the tensors, a hash of their bytes.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._watched = [_Watched(_held(t), t._version, _digest(t)) for t in tensors if not t.is_inference()]

    def __repr__(self) -> str:
        return f"Guard({len(self)} tensor{'s' * (len(self) != 1)})"

    def watches(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in the memory of one that is watched."""
        return any(_key(w.tensor) == _key(tensor) for w in self._watched)

    def __len__(self) -> int:
        return len(self._watched)

    def changed(self) -> list[str]:
        """What has changed, in words; nothing if all holds still.

        Returns:
            Dtype and shape of each tensor whose values are others now.

        Cost: nothing where no version counter has moved, else a hash of the tensors whose have.
        """
        moved = [w for w in self._watched if w.tensor._version != w.version]
        found = []
        for w in moved:
            version = w.tensor._version
            if _digest(w.tensor) == w.digest:
                w.version = version
            else:
                found.append(f"{w.tensor.dtype} of shape {tuple(w.tensor.shape)}")
        return found


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else -id(tensor)


def _held(tensor: Tensor) -> Tensor:
    """Without its graph; sparse tensors share their counter with no other."""
    return tensor.detach() if tensor.layout is torch.strided else tensor


def _digest(tensor: Tensor) -> bytes:
    own, found = tensor.detach(), hashlib.blake2b(digest_size=16)
    parts = [own]
    if own.layout is not torch.strided:
        coo = own.to_sparse_coo().coalesce()
        parts = [coo.indices(), coo.values()]
    for part in parts:
        found.update(repr(tuple(part.shape)).encode())
        found.update(part.resolve_conj().resolve_neg().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.digest()
