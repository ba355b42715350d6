"""Random numbers for a run in float64 of a function that draws them in a shorter type: the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_DRAWS = {
    torch.rand, torch.randn, torch.rand_like, torch.randn_like, torch.bernoulli, torch.normal, torch.poisson,
    torch.multinomial, Tensor.bernoulli, Tensor.multinomial,
}  # fmt: skip
_FILLS = {
    Tensor.uniform_, Tensor.normal_, Tensor.exponential_, Tensor.bernoulli_, Tensor.cauchy_, Tensor.log_normal_,
    Tensor.geometric_,
}  # fmt: skip
_PYTHON = {"torch.nn.functional", "torch._jit_internal"}  # whose functions compute by other functions
_ASKED = {"has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"}


class DrawIn(TorchFunctionMode):
    """Inside it, numbers that would be drawn in float64 are drawn in a shorter type and converted.

    A generator gives other numbers in another type, so that a function of random numbers is another function in float64.

    Args:
        dtype: the shorter type.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS and args[0].dtype is torch.float64:
            drawn = torch.empty_like(args[0], dtype=self._dtype, requires_grad=False)
            func(drawn, *self._short(args[1:]), **self._short(kwargs))
            return args[0].copy_(drawn)
        if func in _DRAWS:
            found = func(*self._short(args), **self._short(kwargs))
            return found.double() if found.dtype is self._dtype else found
        if isinstance(func, FunctionType) and func.__globals__["__name__"] in _PYTHON:
            with self:  # a mode is off inside of functions that ask for it
                return _opened(func)(*args, **kwargs)
        return func(*args, **kwargs)

    def _short(self, given: Any) -> Any:
        return tree_map(self._shortened, given)

    def _shortened(self, value: Any) -> Any:
        if value is torch.float64:
            return self._dtype
        return value.detach().to(self._dtype) if isinstance(value, Tensor) and value.dtype is torch.float64 else value


def _opened(func: FunctionType) -> FunctionType:
    """The function without its question for a mode, so that its own calls reach the mode."""
    names = {**func.__globals__, **dict.fromkeys(_ASKED, lambda *_: False)}
    cells = [cell.cell_contents for cell in func.__closure__ or ()]
    closure = tuple(CellType(_opened(own) if isinstance(own, FunctionType) else own) for own in cells)
    own = FunctionType(func.__code__, names, func.__name__, func.__defaults__, closure)
    own.__kwdefaults__ = func.__kwdefaults__
    return own
