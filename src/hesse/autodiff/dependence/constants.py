"""Constants of a run: which of those that came from outside of the function have lent their values to the pattern."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hesse.autodiff.dependence.memory import Memory


class Constants:
    """What a run has read that does not depend on the input, and from which tensors of the outside that was made.

    Args:
        values: let zeros in constant factors count.

    Attributes:
        used: tensors from outside of the function whose values the pattern rests on: indices, masks, numbers that Python has
            read, factors whose zeros count, and what these were computed from.
    """

    def __init__(self, *, values: bool) -> None:
        self.values = values
        self.used: list[Tensor] = []
        self._sources: dict[int, frozenset[int]] = {}
        self._kept: list[Tensor] = []  # so that memory keeps its address
        self._outside: dict[int, Tensor] = {}

    def see(self, constant: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        """Note what an op has read, and what it has made or written of that alone.

        Args:
            constant: operands that do not depend on the input.
            made: results that do not.
        """
        for t in constant:
            key = _key(t)
            if key not in self._sources:
                self._sources[key], self._outside[key] = frozenset((key,)), t
        if made:
            found = frozenset[int]().union(*(self._sources[_key(t)] for t in constant))
            for t in made:
                if _key(t) not in self._sources:
                    self._kept.append(t)
                self._sources[_key(t)] = self._sources.get(_key(t), frozenset()) | found

    def use(self, tensor: Tensor) -> None:
        """Note that the pattern rests on the values of a constant."""
        known = {id(t) for t in self.used}
        for key in sorted(self._sources.get(_key(tensor), ())):
            if id(self._outside[key]) not in known:
                self.used.append(self._outside[key])

    def zeros_in(self, memory: Memory, written: Sequence[Tensor]) -> Callable[[Tensor], Tensor | None]:
        """A function that tells where an operand of an op is zero, for `Call`; of what the op has written nothing is known."""
        own = {_key(y) for y in written}

        def zeros(tensor: Tensor) -> Tensor | None:
            if not self.values or tensor.layout is not torch.strided or memory.varies(tensor) or _key(tensor) in own:
                return None
            self.use(tensor)
            found = tensor.detach() == 0
            return found.cpu() if bool(found.any()) else None

        return zeros


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else -id(tensor)
