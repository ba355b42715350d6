"""Tensors that must not change in place: their versions are remembered and compared."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from hesse.core.errors import DataError


class Guard:
    """Remembers the versions of tensors (those made in `torch.inference_mode` count none, and are not watched)."""

    def __init__(self, tensors: Collection[Tensor]) -> None:
        self._versions = [(tensor, tensor._version) for tensor in tensors if not tensor.is_inference()]

    def changed(self) -> list[Tensor]:
        """Those that were written to since."""
        return [tensor for tensor, version in self._versions if tensor._version != version]

    def check(self, asked: str, remedy: str) -> None:
        """Raise `DataError` if one was."""
        changed = self.changed()
        if changed:
            shown = ", ".join(str(list(tensor.shape)) for tensor in changed[:3])
            raise DataError(asked, f"{len(changed)} of {len(self._versions)} changed in place since (of shape {shown})", remedy)


PARAMETERS = (
    "A curvature matrix of one batch belongs to the parameters and the data that it was made with.",
    "make a new one after every update, and leave the tensors of the batch alone",
)
"""What is asked, and the remedy, where the watched tensors are parameters."""
