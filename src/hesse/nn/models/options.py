"""Options of models: one value for all layers or one a layer, activations by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from hesse.core.errors import LeafError, StructureError

Value = TypeVar("Value", int, float)
Activation = str | Callable[[Tensor], Tensor]

_NAMES = ("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign", "logsigmoid",
          "hardtanh", "hardsigmoid", "hardswish", "tanhshrink", "softshrink", "hardshrink", "tanh", "sigmoid")  # fmt: skip


def per_layer(name: str, value: Value | Sequence[Value], layers: int) -> tuple[Value, ...]:
    """One value a layer, from a sequence of them or from a single value for all.

    Raises:
        StructureError: a sequence of another length.
    """
    if not isinstance(value, Sequence):
        return (value,) * layers
    if len(value) != layers:
        found = f"{len(value)} values for {layers} layers"
        raise StructureError(f"{name} takes one value, or one for each layer.", found, f"pass one number, or {layers}")
    return tuple(value)


def dropout_per_layer(value: float | Sequence[float], layers: int) -> tuple[float, ...]:
    """Dropout probabilities, one a layer.

    Raises:
        StructureError: one outside [0, 1], or a wrong number of them.
    """
    chosen = per_layer("dropout", value, layers)
    for p in chosen:
        if not 0 <= p <= 1:
            raise StructureError("dropout is the probability that an element is dropped.", f"{p}", "pass 0 <= dropout <= 1")
    return chosen


def features_of(hidden_features: int | Sequence[int]) -> tuple[int, ...]:
    """The widths of the layers, at least one, all positive.

    Raises:
        StructureError: none, or one that is not positive.
    """
    widths = (hidden_features,) if isinstance(hidden_features, int) else tuple(hidden_features)
    if not widths or min(widths) < 1:
        remedy = "pass a sequence such as hidden_features=(100, 2)"
        raise StructureError("hidden_features are the widths of the layers.", f"{widths}", remedy)
    return widths


def activation_function(activation: Activation) -> Callable[[Tensor], Tensor]:
    """The function behind a name of `torch.nn.functional`; a callable stands for itself.

    Raises:
        StructureError: an unknown name, or something that is neither.
    """
    if callable(activation):
        return activation
    if activation not in _NAMES:
        found = f"activation={activation!r}"
        raise StructureError("An activation is a callable or a known name.", found, f"one of {', '.join(_NAMES)}")
    return getattr(torch, activation) if activation in ("tanh", "sigmoid") else getattr(torch.nn.functional, activation)


def require_positive(name: str, width: int) -> None:
    """Refuse a width that is not positive.

    Raises:
        StructureError: it is not.
    """
    if width < 1:
        raise StructureError(f"{name} is positive.", f"{name}={width}", "pass the number of elements of one input")


def require_last(x: Tensor, features: int, what: str) -> None:
    """Refuse an input that is not floating or whose last axis has another size.

    Raises:
        LeafError: integers. StructureError: another size.
    """
    if not (x.is_floating_point() or x.is_complex()):
        raise LeafError(f"{what} takes floating input.", f"{x.dtype}", "convert with x.to(torch.get_default_dtype())")
    if x.ndim == 0 or x.shape[-1] != features:
        found = f"shape {tuple(x.shape)}"
        raise StructureError(f"{what} takes inputs with {features} features in the last axis.", found, "reshape the input")
