"""What a tensor's memory holds: its version, its place, and some of its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_ALL, _MOST = 2**10, 2**8  # numbers of a small tensor, and how many of a larger one are compared


class Stamp:
    """Remembers a tensor; says whether it has been written to.

    Seen are writes that PyTorch counts; another memory in the tensor's place (``p.data = ...``, `vector_to_parameters`); and on
    the CPU writes that PyTorch does not count (``p.data.add_()``, NumPy, other processes), to any number of a tensor of at
    most 1,024, to one of 256 spread over a larger one. Of tensors without memory of their own (sparse and fake ones, those
    inside of `torch.func`), and in `torch.compile`, the version alone counts; those made in `torch.inference_mode` have none.

    Args:
        tensor: any tensor, which is held on to, as is the memory that it has now.

    Cost: about a microsecond at each `holds`, five to make it; no operation of PyTorch runs.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self._version = tensor, None if tensor.is_inference() else tensor._version
        self._storage: torch.UntypedStorage | None = None  # held, so that nothing else comes to lie there
        self._place, self._seen = 0, b""
        self._some: np.ndarray | None = None
        self._end = 0  # bytes of the storage up to the tensor's last number
        if _has_memory(tensor):
            self._storage, self._place = tensor.untyped_storage(), tensor.data_ptr()
            if tensor.device.type == "cpu" and self._storage.nbytes() >= (end := _end(tensor)):  # else it was freed
                self._end = end
                self._some = self._look()
                self._seen = self._some.tobytes()

    def _look(self) -> np.ndarray:
        return np.asarray(_Some(self.tensor, self._place, self._storage))

    def holds(self) -> bool:
        """Whether nothing was seen to change."""
        tensor = self.tensor
        if self._version is not None and tensor._version != self._version:
            return False
        if not self._place or torch.compiler.is_compiling():
            return True
        if self._some is not None and self._storage is not None and self._storage.nbytes() < self._end:
            return False  # its memory was freed
        if tensor.data_ptr() != self._place:
            return self._only_moved()
        return self._some is None or self._some.tobytes() == self._seen

    def _only_moved(self) -> bool:
        """Whether the tensor has the storage it had, elsewhere and with the same numbers: it was brought to shared memory."""
        storage = self.tensor.untyped_storage()
        if self.tensor.device.type != "cpu" or self._storage is None or storage._cdata != self._storage._cdata:
            return False
        self._place = self.tensor.data_ptr()
        if self._some is not None:
            self._some = self._look()
        return self._some is None or self._some.tobytes() == self._seen


def stamps_of(tensors: Iterable[Tensor]) -> list[Stamp]:
    """A stamp of each; numbers that several share, as a parameter and its detached self do, are looked at once."""
    stamps, known = [], set[Any]()
    with _unobserved():
        for tensor in tensors:
            stamp = Stamp(tensor)
            key: Any = (stamp._place, tensor.dtype, tensor.shape, tensor.stride()) if stamp._place else id(tensor)
            if key in known:
                stamp._some, stamp._seen = None, b""
            known.add(key)
            stamps.append(stamp)
    return stamps


def changed(stamps: Iterable[Stamp]) -> list[Tensor]:
    """The tensors that do not hold what they did."""
    with _unobserved():
        return [stamp.tensor for stamp in stamps if not stamp.holds()]


def _unobserved() -> AbstractContextManager[object]:
    """Function modes, such as those that record a program, take nothing of it for a step of the program."""
    return nullcontext() if torch.compiler.is_compiling() else torch._C.DisableTorchFunction()


def _has_memory(tensor: Tensor) -> bool:
    if torch.compiler.is_compiling() or tensor.layout is not torch.strided or tensor.is_meta:
        return False
    kind: Any = type(tensor)
    plain: Any = Tensor
    if kind.__torch_dispatch__ is not plain.__torch_dispatch__ or tensor.is_nested or nn.parameter.is_lazy(tensor):
        return False
    try:
        return bool(tensor.data_ptr())
    except RuntimeError:
        return False


def _end(tensor: Tensor) -> int:
    """Bytes of a storage up to the last number of a tensor, which has one."""
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (int(tensor.storage_offset()) + span + 1) * tensor.element_size()


class _Some:
    """Numbers of a tensor where they lie, as unsigned integers; what NumPy makes an array of without a copy."""

    def __init__(self, tensor: Tensor, place: int, storage: torch.UntypedStorage | None) -> None:
        self.storage, width = storage, tensor.element_size()
        shape, strides = _spread(tuple(tensor.shape), tensor.stride())
        kind = f"<c{width}" if width == 16 else f"<u{width}"
        self.__array_interface__: dict[str, Any] = {
            "data": (place, True),
            "shape": shape,
            "strides": tuple(stride * width for stride in strides),
            "typestr": kind,
            "version": 3,
        }


def _spread(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of numbers spread over a tensor, which has at least one."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    total = math.prod(shape)
    if span == total:  # no gaps, in whatever order its axes lie
        step = 1 if total <= _ALL else -(-total // _MOST)
        while math.gcd(step, total) > 1:  # else always the same columns
            step += 1
        return (-(-total // step),), (step,)
    counts = list(shape)
    while math.prod(counts) > _ALL:  # the longest axis is thinned
        axis = counts.index(max(counts))
        counts[axis] = -(-counts[axis] // 2)
    steps = [max((size - 1) // (count - 1), 1) if count > 1 else 1 for size, count in zip(shape, counts, strict=True)]
    return tuple(counts), tuple(step * stride for step, stride in zip(steps, strides, strict=True))
