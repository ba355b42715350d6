"""Uses of parameters for some samples and for further ones, as uses of all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from torch import Tensor

from hesse.parameters.contractions.uses import Use
from hesse.rules.forms import Contract, Dense, Lookup, Rows
from hesse.rules.layers.convolution import Patches

Roots = Sequence[dict[str, Use]]


class Joined:
    """The uses by root and name of consecutive pieces; memory is taken once, and each piece is copied and may be let go.

    Memory that several uses of a piece share (a layer's weight and bias: the output's cotangent) is shared here, too.

    Args:
        like: the uses of the first piece; see `kinds_of` for which can be joined.
        count: samples of all pieces together, at most.
    """

    def __init__(self, like: Roots, count: int) -> None:
        self._tables: dict[int, Tensor] = {}
        self._filled = 0
        number = _numbers(like)

        def table(tensor: Tensor) -> Tensor:
            place = number(tensor)
            if place not in self._tables:
                self._tables[place] = tensor.new_empty(count, tensor.numel() // len(tensor))
            return self._tables[place].reshape(count, *tensor.shape[1:])

        self._uses = _mapped(like, table)

    def add(self, piece: Roots) -> None:
        """Take the next piece, of the same kinds."""
        number, size = _numbers(piece), 0
        for tensor in _tensors(piece):
            size = len(tensor)
            self._tables[number(tensor)][self._filled : self._filled + size] = tensor.reshape(size, -1)
        self._filled += size

    def uses(self) -> list[dict[str, Use]]:
        """The uses of all pieces so far."""
        return _mapped(self._uses, lambda table: table[: self._filled])


def kinds_of(piece: Roots) -> Hashable:
    """What the pieces that `Joined` takes have in common; None: no other piece can be joined to this one."""
    uses = [(root, name, _kind_of(use)) for root, found in enumerate(piece) for name, use in found.items()]
    if any(kind is None for *_, kind in uses):
        return None
    number = _numbers(piece)
    return tuple(uses), tuple(number(tensor) for tensor in _tensors(piece))


def _kind_of(use: Use) -> Hashable:
    if isinstance(use, Contract):
        kinds = _kind_of_rows(use.left), _kind_of_rows(use.right)
        return None if None in kinds else ("contract", *kinds)
    if isinstance(use, Lookup):
        return "lookup", use.table, use.index.shape[1:], use.g.shape[1:], use.g.dtype
    return ("dense", use.rows.shape[1:], use.rows.dtype) if isinstance(use, Dense) else None


def _kind_of_rows(rows: Rows) -> Hashable:
    if isinstance(rows, Patches):
        axes = (rows.kernel, rows.stride, rows.padding, rows.dilation, rows.positions)
        return rows.image.shape[1:], rows.dtype, rows.groups, tuple(map(tuple, axes))
    return (rows.shape[1:], rows.dtype) if isinstance(rows, Tensor) else None


def _numbers(piece: Roots) -> Callable[[Tensor], int]:
    """Counts the memory of a piece's tensors, which are alive: the same number for all that read it in the same order."""
    known: dict[Hashable, int] = {}

    def number(tensor: Tensor) -> int:
        ordered = tensor.is_contiguous()
        place = tensor.data_ptr(), tensor.numel(), tensor.dtype, None if ordered else (tensor.shape, tensor.stride())
        return known.setdefault(place, len(known))

    for tensor in _tensors(piece):
        number(tensor)
    return number


def _tensors(piece: Roots) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(piece, lambda tensor: (found.append(tensor), tensor)[1])
    return found


def _mapped(piece: Roots, change: Callable[[Tensor], Tensor]) -> list[dict[str, Use]]:
    return [{name: _changed(use, change) for name, use in root.items()} for root in piece]


def _changed(use: Use, change: Callable[[Tensor], Tensor]) -> Use:
    if isinstance(use, Contract):
        return Contract(_changed_rows(use.left, change), _changed_rows(use.right, change))
    if isinstance(use, Lookup):
        return Lookup(change(use.index), change(use.g), use.table)
    assert isinstance(use, Dense)
    return Dense(change(use.rows))


def _changed_rows(rows: Rows, change: Callable[[Tensor], Tensor]) -> Rows:
    if isinstance(rows, Patches):
        return replace(rows, image=change(rows.image))
    assert isinstance(rows, Tensor)
    return change(rows)
