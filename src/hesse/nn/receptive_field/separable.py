"""Functions that are a product of one of the pixel and one of the weight: with a sum, they are ordinary convolutions.

The function itself is called on two symbols that hold the whole padded image and all weights. What it does to one of them is
done; the product of the two is written down; anything else, a sum of both for example, gives up. So the result is what fn says
at this very call, and nothing is expanded: the numbers are those of the terms, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hesse.nn.receptive_field.kernel import Kernel

_PRODUCTS = {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
_NEGATIONS = {torch.neg, torch.negative, Tensor.neg, Tensor.negative, Tensor.__neg__}
_PLAIN = (float, int, bool, type(None), torch.dtype)


class NotSeparableError(Exception):
    """The function is no product of a function of the pixel and one of the weight, or does not show it."""


@dataclass(frozen=True, eq=False)
class Symbol:
    """The product of a function of the pixel and one of the weight, as what it is made of.

    Attributes:
        pixel: a function of every pixel, ``[N, in_channels, *padded]``; None: 1.
        weight: a function of every weight, ``[*extra, 1, 1, 1, weights]``, whose axes of the weight shape lie where they do
            in blocks, counted from either end; None: 1.
        extra: axes of the weight shape that were not indexed yet.
    """

    pixel: Tensor | None
    weight: Tensor | None
    extra: int = 0

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Symbol:
        return apply(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Callable[..., Symbol]:
        method = getattr(Tensor, name, None)
        if name.startswith("__") or not callable(method):
            raise NotSeparableError
        return partial(_call_method, method, self)

    def __getitem__(self, index: int) -> Symbol:
        if self.weight is None or self.pixel is not None or not self.extra or type(index) is not int:
            raise NotSeparableError
        return Symbol(None, self.weight[index], self.extra - 1)

    def __iter__(self) -> Iterator[Symbol]:
        if self.weight is None or not self.extra:
            raise NotSeparableError
        return (self[i] for i in range(self.weight.shape[0]))

    def __bool__(self) -> bool:
        raise NotSeparableError


def _call_method(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Symbol:
    return apply(method, args, kwargs)


def _operator(name: str) -> Callable[..., Symbol]:
    return lambda *args: apply(getattr(Tensor, name), args, {})


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow", "neg", "abs"):
    setattr(Symbol, f"__{_name}__", _operator(f"__{_name}__"))


def apply(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Symbol:
    """An operation on symbols.

    Raises:
        NotSeparableError: it takes both pixels and weights, and is no product.
    """
    symbols = [a for a in args if isinstance(a, Symbol)]
    if func in _PRODUCTS and len(args) == 2 and not kwargs and len(symbols) == 2:
        return _product(*symbols)
    if func in _PRODUCTS and len(args) == 2 and not kwargs and symbols[0].pixel is not None and symbols[0].weight is not None:
        return _scaled(symbols[0], next(a for a in args if a is not symbols[0]))
    if func in _NEGATIONS and len(args) == 1 and not kwargs and symbols[0].pixel is not None:
        return Symbol(-symbols[0].pixel, symbols[0].weight, symbols[0].extra)
    return _on_one(func, args, kwargs, symbols)


def _product(a: Symbol, b: Symbol) -> Symbol:
    if a.extra or b.extra:
        raise NotSeparableError
    return Symbol(_times(a.pixel, b.pixel), _times(a.weight, b.weight))


def _scaled(symbol: Symbol, factor: Any) -> Symbol:
    if not isinstance(factor, (float, int)) or symbol.weight is None:
        raise NotSeparableError
    return Symbol(symbol.pixel, symbol.weight * factor)


def _times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a * b


def _on_one(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], symbols: list[Symbol]) -> Symbol:
    """An elementwise operation on pixels alone, or on weights alone, and numbers."""
    on_pixels, on_weights = any(s.pixel is not None for s in symbols), any(s.weight is not None for s in symbols)
    name = getattr(func, "__name__", "_")
    others = [a for a in (*args, *kwargs.values()) if not isinstance(a, Symbol)]
    if on_pixels == on_weights or len({s.extra for s in symbols}) != 1 or (name.endswith("_") and not name.startswith("__")):
        raise NotSeparableError
    if not all(isinstance(a, _PLAIN) for a in others) or any(isinstance(a, Symbol) for a in kwargs.values()):
        raise NotSeparableError
    values = [(s.pixel if on_pixels else s.weight) for s in symbols]
    given = iter(values)
    result = func(*(next(given) if isinstance(a, Symbol) else a for a in args), **kwargs)
    if not isinstance(result, Tensor) or values[0] is None or result.shape != values[0].shape:
        raise NotSeparableError
    return Symbol(result, None) if on_pixels else Symbol(None, result, symbols[0].extra)


def as_convolution(kernel: Kernel, x: Tensor, weight: Tensor) -> Tensor | None:
    """The value by an ordinary convolution, where it is one.

    Args:
        kernel: what to compute.
        x: padded, ``[N, in_channels, *padded]``.
        weight: ``[*weight_shape, out_channels, channels of a group, *kernel]``.

    Returns:
        ``[N, out_channels, *out]``, with the graph of ordinary operations; None where the reduction is neither "sum" nor
        "mean", or fn is not a product of a function of the pixel and one of the weight.
    """
    if kernel.reduce not in ("sum", "mean"):
        return None
    flat = weight.flatten(kernel.extra)[..., None, None, None, :]
    try:
        product = kernel.fn(Symbol(x, None), Symbol(None, flat, kernel.extra))  # pyright: ignore[reportArgumentType]
    except Exception:  # whatever a function does that was made for tensors
        return None
    if not isinstance(product, Symbol) or product.pixel is None or product.weight is None or product.extra:
        return None
    if not product.pixel.dtype == product.weight.dtype == kernel.dtype:
        return None
    geometry = kernel.geometry
    convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[geometry.dims - 1]
    taps = product.weight.view(weight.shape[kernel.extra :])
    taps = taps / geometry.window if kernel.reduce == "mean" else taps
    return convolve(product.pixel, taps, stride=geometry.stride, dilation=geometry.dilation, groups=geometry.groups)
