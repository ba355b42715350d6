"""Gradients that are the same tensor objects at each call."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from torch import Tensor

from hesse.autodiff.source_lines import warn_user
from hesse.autodiff.variables import Variables
from hesse.core.errors import StructureError


class ResizedGradientWarning(UserWarning):
    """A stable gradient got another shape: what holds views of it, or its size, is out of date."""


class StableGradients(threading.local):
    """The gradient tensors of a function, kept from call to call; each thread has its own.

    Args:
        asked: what is asked of hesse, for error messages.
    """

    def __init__(self, asked: str) -> None:
        self._asked = asked
        self._names: list[str] = []
        self._kept: list[Tensor] = []
        self._noticed = False

    def take(self, variables: Variables, grads: Sequence[Tensor]) -> list[Tensor]:
        """The kept tensors with the values of new gradients; at the first call these themselves.

        Raises:
            StructureError: other leaves, dtypes or devices than at the first call.
        """
        names = variables.names()
        if not self._kept:
            self._names, self._kept = names, list(grads)
            return list(self._kept)
        if names != self._names:
            self._refuse(f"leaves {_difference(self._names, names)}, unlike at the call before")
        for name, old, new in zip(names, self._kept, grads, strict=True):
            if (old.dtype, old.device) != (new.dtype, new.device):
                self._refuse(f"{new.dtype} on {new.device} at '{name}', where it was {old.dtype} on {old.device}")
        for name, old, new in zip(names, self._kept, grads, strict=True):
            if old.shape != new.shape:
                self._notice(f"the stable gradient of '{name}' got shape {tuple(new.shape)} instead of {tuple(old.shape)}")
                old.resize_(new.shape)
            old.copy_(new)
        return list(self._kept)

    def _notice(self, message: str) -> None:
        if not self._noticed:
            self._noticed = True
            warn_user(message, ResizedGradientWarning)

    def _refuse(self, found: str) -> None:
        remedy = "make a new gradient function for parameters of another structure, or leave out stable_gradients"
        raise StructureError(self._asked, found, remedy)


def _difference(old: Sequence[str], new: Sequence[str]) -> str:
    gone, come = [n for n in old if n not in new], [n for n in new if n not in old]
    parts = [f"missing: {', '.join(gone)}"] * bool(gone) + [f"new: {', '.join(come)}"] * bool(come)
    return "; ".join(parts) or f"in another order: {', '.join(new)}"
