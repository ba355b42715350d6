"""What Python does to tensors without an op that shows it: values taken as arrays or lists, tangents cut off,
gradients changed on their way back."""

from __future__ import annotations

import os
import sys
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from hesse.autodiff.dependence.following import Following

_TAKES = frozenset({"numpy", "__array__", "tolist", "__dlpack__", "data_ptr", "storage", "typed_storage", "untyped_storage"})
_CUTS = frozenset({"detach", "detach_"})
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Reading(TorchFunctionMode):
    """Notes where Python takes values out of tensors that depend on the input, as neighbor lists made by SciPy do, where it
    detaches them, and where it hooks their gradients.

    Args:
        following: gets the lines.
    """

    def __init__(self, following: Following) -> None:
        super().__init__()
        self._following = following

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        takes = name in _TAKES and args and isinstance(args[0], Tensor) and self._following.memory.varies(args[0])
        if takes and not sys._getframe(1).f_code.co_filename.startswith(_OWN):
            self._following.branches.append(self._following.place(name))
        if name == "register_hook":
            self._following.hooked = True
        result = func(*args, **(kwargs or {}))
        if name in _CUTS or (name == "__get__" and getattr(func.__self__, "__name__", "") == "data"):
            self._cut(result)
        return result

    def _cut(self, tensor: Any) -> None:
        cuts = self._following.cuts
        if cuts is not None and isinstance(tensor, Tensor) and self._following.memory.varies(tensor):
            cuts.add(tensor)
