"""Which tensors have a value that depends on the input, and no tangent: after `detach`, and under `torch.no_grad`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Cuts:
    """Tensors that share memory with others which have a tangent, and have none themselves.

    What memory depends on cannot tell them apart, so they are known by themselves. Views of them are cut as well. Writing into
    such memory where gradients are recorded ends that: from then on it has all tangents that one or the other has.
    """

    def __init__(self) -> None:
        self._known: Any = WeakTensorKeyDictionary()
        self._shared: set[int] = set()  # memory in which tensors with and without a tangent were written to

    def __contains__(self, tensor: Tensor) -> bool:
        return bool(self._known) and tensor in self._known

    def add(self, tensor: Tensor) -> None:
        """A tensor was detached."""
        self._known[tensor] = True

    def passes(self, given: Sequence[Tensor], views: Sequence[Tensor], written: Sequence[Tensor]) -> bool:
        """Note one op.

        Args:
            given: its operands.
            views: results that share memory with them.
            written: what it has written into.

        Returns:
            Whether its results have no tangents, and what it has written keeps those that it had.
        """
        cut = not torch.is_grad_enabled()
        if cut or (self._known and any(t in self._known for t in given)):
            for t in views:
                if cut or all(t in self._known for t in given):
                    self.add(t)
        if self._known and not cut:
            for t in written:
                self._restore(t.untyped_storage()._cdata)
        return cut

    def keeps(self, tensor: Tensor) -> bool:
        """Whether what is written into a tensor adds to its tangents, and replaces none."""
        return bool(self._shared) and tensor.untyped_storage()._cdata in self._shared

    def _restore(self, memory: int) -> None:
        for t in [t for t in self._known if t.layout is torch.strided and t.untyped_storage()._cdata == memory]:
            del self._known[t]
            self._shared.add(memory)
