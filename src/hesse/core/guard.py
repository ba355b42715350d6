"""Tensors that must not change in place: what they hold is remembered and compared."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import Tensor

from hesse.core.errors import DataError
from hesse.core.stamp import changed, stamps_of

_SHOWN = 3


class Guard:
    """Remembers tensors, and what of them `Stamp` sees.

    Args:
        tensors: what is watched.
        names: of the tensors, for people; several may be the same leaf's. Without them shapes are named.

    Cost: about a microsecond a tensor at each check, five to make it.
    """

    def __init__(self, tensors: Collection[Tensor], names: Sequence[str] | None = None) -> None:
        self._stamps = stamps_of(tensors)
        self._names: dict[int, str] = {} if names is None else {id(t): n for t, n in zip(tensors, names, strict=True)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        """A guard of the same tensors, which functions go on reading, and of their copies."""
        watched, names = self._unchanged()
        return Guard([*watched, *copy.deepcopy(watched, memo)], names and names * 2)

    def __reduce__(self) -> tuple[Any, ...]:
        """A guard of the tensors as they arrive elsewhere."""
        return Guard, self._unchanged()

    def _unchanged(self) -> tuple[list[Tensor], list[str] | None]:
        self.check("A copy is made of what has not changed.", "copy it before the change, or make it anew")
        watched = [stamp.tensor for stamp in self._stamps]
        return watched, [self._names[id(tensor)] for tensor in watched] if self._names else None

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Watch these, too, as they are now; those that are watched already go on being so. For guards without names."""
        known = {id(stamp.tensor) for stamp in self._stamps}
        self._stamps += stamps_of(tensor for tensor in tensors if id(tensor) not in known)

    def changed(self) -> list[Tensor]:
        """Those that were written to since."""
        return changed(self._stamps)

    def check(self, asked: str, remedy: str) -> None:
        """Raise `DataError` if one was."""
        found = self.changed()
        if found:
            raise DataError(asked, self._described(found), remedy)

    def _described(self, found: list[Tensor]) -> str:
        if not self._names:
            shown = ", ".join(str(list(tensor.shape)) for tensor in found[:_SHOWN])
            return f"{len(found)} of {len(self._stamps)} changed in place since (of shape {shown})"
        every = {self._names[id(stamp.tensor)] for stamp in self._stamps}
        names = list(dict.fromkeys(self._names[id(tensor)] for tensor in found))
        shown = ", ".join(f"'{name}'" for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        return f"{len(names)} of {len(every)} changed in place since: {shown}"


PARAMETERS = (
    "A curvature matrix of one batch belongs to the parameters and the data that it was made with.",
    "make a new one after every update, and leave the tensors of the batch alone",
)
"""What is asked, and the remedy, where the watched tensors are parameters."""
