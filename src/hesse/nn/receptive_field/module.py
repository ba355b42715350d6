"""`ReceptiveFieldConv1d`, `ReceptiveFieldConv2d` and `ReceptiveFieldConv3d`: convolutions by any function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hesse.autodiff.recording import inside_functorch
from hesse.core.errors import LeafError, StructureError
from hesse.nn.receptive_field.arguments import (
    Size,
    is_int,
    padding_pairs,
    per_axis,
    refused,
    require_channels,
    require_dtype,
    require_function,
    require_mode,
)
from hesse.nn.receptive_field.examine import Examined, examine
from hesse.nn.receptive_field.function import convolve
from hesse.nn.receptive_field.geometry import Geometry
from hesse.nn.receptive_field.kernel import Function, Kernel
from hesse.nn.receptive_field.native import NativeBlock
from hesse.nn.receptive_field.reductions import NAMES, Reduce


@dataclass(eq=False, repr=False)
class ReceptiveFieldConv(nn.Module):
    """A convolution whose product is any function and whose sum is any reduction; the base of the three classes.

    ``output[n, o, p] = bias[o] + reduce over c and k of fn(input[n, c, p * stride + k * dilation], weight[o, c, k])``, with
    the channels c of the filter's group and the taps k of the window.

    A term is fn of a pixel and of the weight of its tap. fn is elementwise: it is given blocks of pixels and of weights that
    broadcast, and returns a block of the broadcast shape; it may close over other tensors. Pixels of the padding are pixels.

    Args:
        fn: ``fn(pixel, weight)``. With a weight shape, ``weight[i]`` are the weights that broadcast with the pixels.
        in_channels: channels of the input.
        out_channels: filters.
        kernel_size: taps along each axis.
        weight_shape: of the weights of one tap; ``(2,)``: two weights, ``a, b = weight`` inside fn.
        reduce: "sum", "mean", "prod", "max", "min", "logsumexp", or a callable ``(tensor, dim)`` that removes an axis, along
            which the terms stand in the order of ``weight[o].flatten()``. Tied maxima share the gradient evenly.
        stride: step of the window.
        padding: pixels on both sides, for all axes or for each; "same" or "valid".
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        padding_value: what "zeros" pads with: fn sees it as a pixel. Minus infinity leaves padding out of a "max" of sums.
        dilation: distance between taps.
        groups: parts of the channels that are treated apart.
        bias: whether a number for each filter is added to the reduced terms.
        init: fills a tensor in place, ``[*weight_shape, out_channels, in_channels / groups, *kernel_size]``, as those of
            `torch.nn.init`. None: uniform within 1 / sqrt(taps of a window), as `torch.nn.Conv2d`; so is the bias in any case.
        compile: "native": terms are made and reduced by code from `torch.compile` in forward passes, 1.5 to 3 times as fast;
            a callable `reduce` is not compiled. "off": eagerly.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight: ``[*weight_shape, out_channels, in_channels / groups, *kernel_size]``.
        bias: ``[out_channels]``, or None.

    Raises:
        StructureError: options that have no meaning; at a call: an input of another shape, fn that is not elementwise or
            changes its arguments, a kernel larger than the padded input, more padding than the mode allows.
        LeafError: at a call: an input or terms that are no floating-point numbers.
        NondeterministicError: at a call: fn returns other numbers each time.
        MemoryBudgetError: at a call: the output and a block of one term do not fit into the budget of `hesse.memory`.

    Terms are never all in memory: they are made in blocks, in forward passes and again in backward passes, of every order, and
    `hesse.memory` bounds the blocks. Where fn closes over tensors that require gradients, under `torch.func` and in forward
    mode, whatever the derivatives of all terms need is kept: no budget holds there.

    Cost: the forward pass evaluates fn on each term once, the backward pass once more and takes its derivative; "max" and
    "min" evaluate it twice there. A backward pass that is differentiated again evaluates it once more for each order.
    """

    dims: ClassVar[int] = 0

    fn: Function
    in_channels: int
    out_channels: int
    kernel_size: Size
    _: KW_ONLY
    weight_shape: Sequence[int] = ()
    reduce: Reduce = "sum"
    stride: Size = 1
    padding: Size | str = 0
    padding_mode: str = "zeros"
    padding_value: float = 0.0
    dilation: Size = 1
    groups: int = 1
    bias: InitVar[bool] = True
    init: InitVar[Callable[[Tensor], Any] | None] = None
    compile: InitVar[Literal["off", "native"]] = "off"  # pyright: ignore[reportIncompatibleMethodOverride] - deleted below
    device: InitVar[torch.device | str | None] = None
    dtype: InitVar[torch.dtype | None] = None

    def __new__(cls, *_: Any, **__: Any) -> ReceptiveFieldConv:
        """A module that fields can be set on."""
        module = super().__new__(cls)
        nn.Module.__init__(module)
        return module

    def __post_init__(
        self,
        bias: bool,
        init: Callable[[Tensor], Any] | None,
        compile: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        self._require_functions(compile)
        if not (init is None or callable(init)):
            raise refused(f"init={init!r}", "pass a function that fills a tensor in place, or None")
        require_channels(self.in_channels, self.out_channels, self.groups)
        require_mode(self.padding_mode, self.padding_value)
        self.kernel_size = per_axis(self.kernel_size, self.dims, "kernel_size")
        self.stride = per_axis(self.stride, self.dims, "stride")
        self.dilation = per_axis(self.dilation, self.dims, "dilation")
        self.compile_mode = compile
        require_dtype(dtype)
        pairs = padding_pairs(self.padding, self.kernel_size, self.stride, self.dilation)
        self.geometry = Geometry(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.dilation,
            self.groups,
            pairs,
            self.padding_mode,
            float(self.padding_value),
        )
        shape = (*self.weight_shape, self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        numbers = nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", numbers)
        self._init = init
        self._examined: dict[tuple[Any, ...], Examined] = {}
        self._native: dict[tuple[Any, ...], NativeBlock] = {}
        self.reset_parameters()

    def _require_functions(self, compile: str) -> None:
        require_function(self.fn)
        if not callable(self.reduce) and self.reduce not in NAMES:
            raise refused(f"reduce={self.reduce!r}", f"choose one of {', '.join(NAMES)}, or a callable (tensor, dim)")
        if compile not in ("off", "native"):
            raise refused(f"compile={compile!r}", "choose 'off' or 'native'")
        shape = self.weight_shape
        if not isinstance(shape, (tuple, list)) or not all(is_int(n) and n >= 1 for n in shape):
            raise refused(f"weight_shape={shape!r}", "pass a tuple of positive integers, () for one weight a tap")
        self.weight_shape = tuple(shape)

    def reset_parameters(self) -> None:
        """Draw weights and bias anew: by `init`, or as `torch.nn.Conv2d` does."""
        bound = 1 / math.sqrt(self.geometry.window)
        with torch.no_grad():
            (self._init or (lambda weight: weight.uniform_(-bound, bound)))(self.weight)
            if (bias := self._parameters["bias"]) is not None:
                bias.uniform_(-bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """The convolution.

        Args:
            input: ``[N, in_channels, *sizes]``, or without N.

        Returns:
            ``[N, out_channels, *out]``, or without N, as `torch.nn.Conv2d`; of the dtype of what fn returns.

        Raises:
            StructureError, LeafError, NondeterministicError, MemoryBudgetError: as the class says.
        """
        self._require_input(input)
        batched = input.dim() == self.dims + 2
        x = self.geometry.pad(input if batched else input.unsqueeze(0))
        extra = len(self.weight_shape)
        examined = self._examine(input, extra)
        kernel = Kernel(self.fn, self.reduce, self.geometry, extra, examined.dtype)
        if self.compile_mode == "native" and kernel.reduction is not None:
            kernel = Kernel(self.fn, self.reduce, self.geometry, extra, examined.dtype, self._compiled(kernel))
        out = convolve(kernel, x, self.weight, closes_over_variables=examined.closes_over_variables())
        bias: Tensor | None = getattr(self, "bias")  # noqa: B009 - the field of that name is the option
        if bias is not None:
            out = _with_bias(out, bias.view(-1, *(1,) * self.dims), kernel.reduction is not None)
        return out if batched else out.squeeze(0)

    def _require_input(self, input: Tensor) -> None:
        asked = f"{type(self).__name__} takes images of {self.in_channels} channels."
        if not isinstance(input, Tensor):
            raise LeafError(asked, type(input).__name__, "pass a tensor")
        if not (input.is_floating_point() or input.is_complex()):
            raise LeafError(asked, f"an input of {input.dtype}", "convert it to floating point, e.g. input.float()")
        if input.dim() not in (self.dims + 1, self.dims + 2) or input.shape[-self.dims - 1] != self.in_channels:
            sizes = ", ".join(["size"] * self.dims)
            raise StructureError(
                asked,
                f"an input of shape {tuple(input.shape)}",
                f"pass [N, {self.in_channels}, {sizes}] or [{self.in_channels}, {sizes}]",
            )

    def _examine(self, x: Tensor, extra: int) -> Examined:
        key = (id(self.fn), id(self.reduce), x.dtype, x.device, self.weight.dtype)
        if key in self._examined:
            return self._examined[key]
        examined = examine(self.fn, self.reduce, x, self.weight, extra)
        if examined.lasts:
            self._examined = {key: examined}
        return examined

    def _compiled(self, kernel: Kernel) -> NativeBlock | None:
        key = (id(kernel.fn), id(kernel.reduce), kernel.dtype)
        if key not in self._native:
            self._native = {key: NativeBlock(kernel)}
        return None if self._native[key].fails else self._native[key]

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be found out and compiled again."""
        return self.__dict__ | {"_examined": {}, "_native": {}}

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        names = ("weight_shape", "reduce", "stride", "padding", "padding_mode", "padding_value", "dilation", "groups")
        defaults = ((), "sum", (1,) * self.dims, 0, "zeros", 0.0, (1,) * self.dims, 1)
        parts = [f"{_name(self.fn)}, {self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        values = [getattr(self, name) for name in names]
        shown = zip(names, values, defaults, strict=True)
        parts += [f"{name}={_name(v) if callable(v) else repr(v)}" for name, v, default in shown if v != default]
        parts += ["bias=False"] if self._parameters["bias"] is None else []
        parts += [f"compile={self.compile_mode!r}"] if self.compile_mode != "off" else []
        return ", ".join(parts)


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _with_bias(out: Tensor, bias: Tensor, is_fresh: bool) -> Tensor:
    """The sum; in place where nobody else has the output and nothing records it."""
    if (
        not is_fresh
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or inside_functorch()
        or out.dtype != bias.dtype
    ):
        return out + bias
    return out.add_(bias)


for _option in ("bias", "init", "compile", "device", "dtype"):  # options only: modules have attributes of some of these names
    delattr(ReceptiveFieldConv, _option)


class ReceptiveFieldConv1d(ReceptiveFieldConv):
    """A convolution of sequences, ``[N, in_channels, length]``, by any function.

    `torch.nn.Conv1d` with another product and sum. Arguments, attributes, errors and cost are those of `ReceptiveFieldConv`.
    """

    dims: ClassVar[int] = 1


class ReceptiveFieldConv2d(ReceptiveFieldConv):
    """A convolution of images, ``[N, in_channels, height, width]``, by any function.

    `torch.nn.Conv2d` with another product and sum. Arguments, attributes, errors and cost are those of `ReceptiveFieldConv`.
    """

    dims: ClassVar[int] = 2


class ReceptiveFieldConv3d(ReceptiveFieldConv):
    """A convolution of volumes, ``[N, in_channels, depth, height, width]``, by any function.

    `torch.nn.Conv3d` with another product and sum. Arguments, attributes, errors and cost are those of `ReceptiveFieldConv`.
    """

    dims: ClassVar[int] = 3
