"""Tensors that must not change in place: their versions are remembered and compared."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from hesse.core.errors import DataError

_SHOWN = 3


class Guard:
    """Remembers the versions of tensors (those made in `torch.inference_mode` count none, and are not watched).

    Args:
        tensors: what is watched.
        names: of the tensors, for people; several may be the same leaf's. Without them shapes are named.
    """

    def __init__(self, tensors: Collection[Tensor], names: Sequence[str] | None = None) -> None:
        self._versions = [(tensor, tensor._version) for tensor in tensors if not tensor.is_inference()]
        self._names: dict[int, str] = {} if names is None else {id(t): n for t, n in zip(tensors, names, strict=True)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        """A guard of the same tensors, which functions go on reading, and of their copies."""
        self.check("A copy is made of what has not changed.", "copy it before the change, or make it anew")
        watched = [tensor for tensor, _ in self._versions]
        names = [self._names[id(tensor)] for tensor in watched] * 2 if self._names else None
        return Guard([*watched, *copy.deepcopy(watched, memo)], names)

    def changed(self) -> list[Tensor]:
        """Those that were written to since."""
        return [tensor for tensor, version in self._versions if tensor._version != version]

    def check(self, asked: str, remedy: str) -> None:
        """Raise `DataError` if one was."""
        changed = self.changed()
        if changed:
            raise DataError(asked, self._described(changed), remedy)

    def _described(self, changed: list[Tensor]) -> str:
        if not self._names:
            shown = ", ".join(str(list(tensor.shape)) for tensor in changed[:_SHOWN])
            return f"{len(changed)} of {len(self._versions)} changed in place since (of shape {shown})"
        every = {self._names[id(tensor)] for tensor, _ in self._versions}
        names = list(dict.fromkeys(self._names[id(tensor)] for tensor in changed))
        shown = ", ".join(f"'{name}'" for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        return f"{len(names)} of {len(every)} changed in place since: {shown}"


PARAMETERS = (
    "A curvature matrix of one batch belongs to the parameters and the data that it was made with.",
    "make a new one after every update, and leave the tensors of the batch alone",
)
"""What is asked, and the remedy, where the watched tensors are parameters."""
