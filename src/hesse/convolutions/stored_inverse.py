"""Inverses as tensors and plain values, and back: what `hesse.save` keeps so that nothing is factored again at loading."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.convolutions.augmented import AugmentedSystem
from hesse.convolutions.border import BorderFactors
from hesse.convolutions.boundary import BoundaryInverse
from hesse.convolutions.circular import CircularInverse
from hesse.convolutions.fields import Columns
from hesse.convolutions.geometry import Geometry
from hesse.convolutions.inverse import Inverse
from hesse.convolutions.operator import Convolution
from hesse.convolutions.patches import Kind, PatchInverse
from hesse.convolutions.small import DenseInverse
from hesse.convolutions.square import SquareSystem
from hesse.convolutions.systems import Augmented, Direct
from hesse.convolutions.torus import Slots, Torus
from hesse.convolutions.triplets import Triplets
from hesse.convolutions.truncation import Cut, Factors
from hesse.core.errors import UnsupportedError

_PARTS: tuple[type, ...] = (
    Augmented, AugmentedSystem, BorderFactors, BoundaryInverse, CircularInverse, Columns, Cut, DenseInverse, Direct, Factors,
    Geometry, Kind, PatchInverse, Slots, SquareSystem, Torus, Triplets,
)  # fmt: skip
_NAMES = {part.__name__: part for part in _PARTS}
_CHEAP = (CircularInverse, Torus)  # whose derived attributes are left out
_OPERATOR = "convolution"


def stored(inverse: Inverse) -> Any:
    """What makes up an inverse, of the types that operators are stored by; without its convolution. None for other methods."""
    return _encoded(inverse, type(inverse).__name__) if isinstance(inverse, _PARTS) else None


def restored(value: Any, convolution: Convolution) -> Inverse:
    """The inverse that was stored, of this convolution."""
    inverse: Inverse = _decoded(value)
    inverse.convolution = convolution
    return inverse


def _encoded(value: Any, path: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, complex, str, Convolution)):
        return value
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Tensor):  # the order of strides decides how products round
        order = sorted(range(value.ndim), key=lambda axis: -value.stride(axis))
        return {"tensor": value.detach().permute(order), "order": order}
    if isinstance(value, _PARTS):
        if isinstance(value, tuple):
            state: Any = [_encoded(part, f"{path}[{place}]") for place, part in enumerate(value)]
        else:
            state = {name: _encoded(part, f"{path}.{name}") for name, part in _state(value).items()}
        return {"class": type(value).__name__, "state": state}
    if isinstance(value, (list, tuple)):
        parts = [_encoded(part, f"{path}[{place}]") for place, part in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    raise UnsupportedError(
        "Inverses of convolutions are stored by tensors and plain values.",
        f"a {type(value).__name__} at {path}",
        "factor again",
    )


def _state(value: Any) -> dict[str, Any]:
    kind, state = type(value), dict(vars(value))
    if isinstance(value, Inverse):
        state.pop(_OPERATOR)
    if isinstance(value, _CHEAP):
        derived = [name for name in state if isinstance(getattr(kind, name, None), cached_property)]
        state = {name: part for name, part in state.items() if name not in derived}
    return state


def _decoded(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_decoded(part) for part in value)
    if not isinstance(value, dict):
        return value
    if "dtype" in value:
        return getattr(torch, value["dtype"])
    if "tensor" in value:
        order = value["order"]
        return value["tensor"].permute([order.index(axis) for axis in range(len(order))])
    kind, state = _NAMES[value["class"]], value["state"]
    if issubclass(kind, tuple):
        make: Any = kind
        return make(*(_decoded(part) for part in state))
    made = object.__new__(kind)
    vars(made).update({name: _decoded(part) for name, part in state.items()})
    return made
