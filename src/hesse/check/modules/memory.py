"""Parameters that lie in one memory without being one parameter."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor, nn

from hesse.check.modules.ledger import Ledger

_CHECK = "memory of parameters"
_Place = tuple[torch.device, int]  # a storage


def check_memory(module: nn.Module, ledger: Ledger) -> None:
    """Find parameters whose elements share memory with another parameter, with a buffer, or with each other.

    One parameter in two places (tied) is one parameter: it has one gradient, and copies keep it so. Two parameters that are
    views of one memory have a gradient each, an optimizer's step on one changes the other, and copies, casts and loading
    separate them. Parameters side by side in one buffer, as fused recurrences have them, share nothing.

    Args:
        module: the user's own, since copies have memory of their own.
        ledger: where to report.
    """
    parameters = dict(module.named_parameters())
    count = len(ledger.findings)
    for name, p in parameters.items():
        if _place(p) is not None and any(step == 0 and length > 1 for step, length in zip(p.stride(), p.shape, strict=True)):
            ledger.wrong(_CHECK, "its elements share memory with each other (expanded): an update in place changes several at "
                         "once, or raises; clone it first", name)  # fmt: skip
    for (a, first), (b, second) in _pairs({**parameters, **dict(module.named_buffers())}):
        if a in parameters and _overlap(first, second):
            kind = "parameter" if b in parameters else "buffer"
            ledger.wrong(_CHECK, f"shares memory with the {kind} '{b}': an update of one changes the other, and deepcopy, to() "
                         f"and loading separate them; {_remedy(first, second, kind)}", a)  # fmt: skip
    if len(ledger.findings) == count:
        ledger.fine(_CHECK)


def _remedy(first: Tensor, second: Tensor, kind: str) -> str:
    if kind == "parameter" and first.shape == second.shape:
        return "register one nn.Parameter in both places, or clone()"
    return "compute it from the parameter in forward(), or clone()"


def _pairs(tensors: dict[str, Tensor]) -> Iterator[tuple[tuple[str, Tensor], tuple[str, Tensor]]]:
    """Tensors of one storage, parameters first."""
    together: dict[_Place, list[tuple[str, Tensor]]] = {}
    for name, t in tensors.items():
        place = _place(t)
        if place is not None:
            together.setdefault(place, []).append((name, t))
    for own in together.values():
        yield from combinations(own, 2)


def _place(t: Tensor) -> _Place | None:
    """The storage of a plain tensor with elements."""
    if t.layout is not torch.strided or not t.numel() or type(t) not in (Tensor, nn.Parameter, nn.Buffer):
        return None
    address = t.untyped_storage().data_ptr()
    return (t.device, address) if address else None


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage have a byte in common."""
    (low, high), (left, right) = _range(a), _range(b)
    if high <= left or right <= low:
        return False
    if a.is_contiguous() and b.is_contiguous():
        return True
    return a.dtype != b.dtype or bool(torch.isin(_elements(a), _elements(b)).any())


def _range(t: Tensor) -> tuple[int, int]:
    """The bytes from the first element to behind the last."""
    size = t.element_size()
    start = t.storage_offset() * size
    return int(start), int(start) + size * (
        1 + sum(step * (length - 1) for step, length in zip(t.stride(), t.shape, strict=True))
    )


def _elements(t: Tensor) -> Tensor:
    """The places of the elements in the storage."""
    places = torch.tensor(t.storage_offset())
    for step, length in zip(t.stride(), t.shape, strict=True):
        places = places[..., None] + step * torch.arange(length)
    return places.flatten()
