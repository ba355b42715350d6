"""Ops whose second derivative PyTorch computes wastefully, exchanged for forms of their own while a function is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hesse.autodiff.ops_convolution import convolution
from hesse.autodiff.ops_pointwise import gelu, max_pool2d, relu
from hesse.autodiff.ops_rows import layer_norm, softmax, softmax_of_tensor

_SWAPPED: dict[Any, Callable[..., Tensor | None]] = {
    torch.conv1d: convolution(1),
    torch.conv2d: convolution(2),
    torch.conv3d: convolution(3),
    torch.conv_transpose1d: convolution(1, transposed=True),
    torch.conv_transpose2d: convolution(2, transposed=True),
    torch.conv_transpose3d: convolution(3, transposed=True),
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), relu),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), max_pool2d),
    F.gelu: gelu,
    **dict.fromkeys((F.layer_norm, torch.layer_norm), layer_norm),
    F.softmax: softmax,
    **dict.fromkeys((torch.softmax, Tensor.softmax), softmax_of_tensor),
}


class SecondOrderOps(TorchFunctionMode):
    """Within this mode, which belongs to the thread, some ops are computed by `torch.autograd.Function`s of hesse.

    Values and derivatives of all orders are the same to rounding; ops and options that are not covered are left alone.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        swapped = _SWAPPED.get(func)
        if swapped is not None:
            result = swapped(*args, **(kwargs or {}))
            if result is not None:
                return result
        return func(*args, **(kwargs or {}))


def with_second_order_ops(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function, some of its ops computed such that second derivatives are cheap."""

    def swapped(x: Any) -> Any:
        with SecondOrderOps():
            return f(x)

    return swapped
