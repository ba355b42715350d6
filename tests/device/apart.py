"""A device that is none: tensors that say they are on "apart", hold CPU memory, and refuse to meet tensors of the CPU.

It stands in for a GPU where there is none: code that makes a tensor on the wrong device, hands a tensor of the device to NumPy
or indexes by address fails here as it would there, and backward passes run in a thread of the device. PyTorch's hooks for
backends in Python (`torch.utils.backend_registration`) register it for the rest of the process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils import backend_registration

NAME = "apart"
LIMITS = {
    "indexing with a slice and None at once gives the whole axis": {"ggn", "diagonal", "diagonal_by_sample", "trace"},
    "tensors cannot be resized or written to by address": {"check_module", "check_operator"},
    "functorch has no vmap over a function that it compiles": {"nn"},
    "its operations are Python code, which no record may hold": {"compile_products", "compile_rows"},
    "safetensors does not know it": {"save"},
}
"""What this device cannot do and a GPU can, with the cases that need it."""
_MEETS = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_", "_local_scalar_dense"}
_library: list[Any] = []


class Mixed(RuntimeError):
    """An operation was given tensors on two devices."""


class Apart(Tensor):
    """A tensor on the device; `held` is what it holds."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Apart:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made: Any = Tensor._make_wrapper_subclass(cls, held.shape, **layout, dtype=held.dtype, device=torch.device(NAME, 0))
        made.held = held
        return made

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Apart({self.held!r})"


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, on the CPU.

    Raises:
        Mixed: tensors on two devices, where CUDA would refuse them.
    """
    name, device = func.overloadpacket.__name__, kwargs.get("device")
    given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    apart = [t for t in given if isinstance(t, Apart)]
    others = [tuple(t.shape) for t in given if not isinstance(t, Apart) and t.ndim]
    if apart and others and name not in _MEETS:
        raise Mixed(f"{func} got tensors of {NAME} and of the CPU, those of shapes {others}")
    is_far = bool(apart) if device is None else torch.device(device).type == NAME
    if name in ("copy_", "_local_scalar_dense"):
        is_far = name == "copy_" and isinstance(args[0], Apart)
    args, kwargs = pytree.tree_map(lambda t: t.held if isinstance(t, Apart) else t, (args, kwargs))
    if device is not None and is_far:
        kwargs["device"] = "cpu"
    known = {id(t.held): t for t in apart}

    def placed(t: Any) -> Any:
        if not isinstance(t, Tensor) or not is_far or t.layout != torch.strided:
            return t
        return known[id(t)] if id(t) in known else Apart(t)

    return pytree.tree_map(placed, func(*args, **kwargs))


def install() -> None:
    """Let PyTorch know of the device, for the rest of the process."""
    if _library:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda op, *args, **kwargs: run(op, args, kwargs), "PrivateUse1")
    _library.append(library)
