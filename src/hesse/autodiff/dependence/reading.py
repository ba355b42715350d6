"""What Python takes from tensors without an op: arrays of NumPy, lists, addresses."""

from __future__ import annotations

import os
import sys
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from hesse.autodiff.dependence.following import Following

_TAKES = frozenset({"numpy", "__array__", "tolist", "__dlpack__", "data_ptr", "storage", "typed_storage", "untyped_storage"})
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Reading(TorchFunctionMode):
    """Notes where Python takes values out of tensors that depend on the input, as neighbor lists made by SciPy do.

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
        return func(*args, **(kwargs or {}))
