"""Arguments of a convolution, checked: PyTorch's own conventions, and what PyTorch refuses is refused by a typed error."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.convolutions.geometry import PADDING_MODES, Geometry
from hesse.core.errors import LeafError, StructureError

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)

Sizes = int | Sequence[int]
Padding = str | int | Sequence[int | Sequence[int]]


def checked_geometry(
    weight: Tensor,
    input_shape: Sequence[int],
    stride: Sizes,
    padding: Padding,
    padding_mode: str,
    dilation: Sizes,
    groups: int,
) -> Geometry:
    """The geometry of a convolution with the options of `torch.nn.Conv2d` and its kin.

    Args:
        weight: ``[out_channels, in_channels / groups, *kernel]``.
        input_shape: ``(in_channels, *size)``.
        stride, dilation: one number, or one an axis.
        padding: likewise, or one pair ``(before, after)`` an axis, ``"same"`` or ``"valid"``.
        padding_mode: one of `PADDING_MODES`.
        groups: number of groups of channels.

    Raises:
        LeafError: the weight is no dense tensor of real or complex floating-point numbers of at least 16 bits a part
            (complex32, which PyTorch cannot convolve, is refused too).
        StructureError: arguments that do not fit together.
    """
    kernel = _kernel(weight)
    channels, *size = _input_shape(input_shape, len(kernel))
    strides, dilations = _per_axis("stride", stride, len(kernel)), _per_axis("dilation", dilation, len(kernel))
    if padding_mode not in PADDING_MODES:
        listed = ", ".join(map(repr, PADDING_MODES))
        raise StructureError(
            "A convolution has no such padding_mode.", f"padding_mode={padding_mode!r}", f"use one of {listed}"
        )
    _check_channels(weight, channels, groups)
    geometry = Geometry(
        in_channels=channels,
        out_channels=weight.shape[0],
        groups=groups,
        size=tuple(size),
        kernel=kernel,
        stride=strides,
        dilation=dilations,
        padding=_padding(padding, kernel, strides, dilations),
        padding_mode=padding_mode,
    )
    _check_sizes(geometry)
    return geometry


def whole_number(name: str, value: Any, least: int) -> int:
    """`value` as an int, at least `least`.

    Raises:
        StructureError: it is none.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise StructureError(f"{name} is a whole number, at least {least}.", f"{value!r}", "pass such a number")
    return number


def _kernel(weight: Tensor) -> tuple[int, ...]:
    is_tensor = isinstance(weight, Tensor)
    if not is_tensor or weight.dtype not in _DTYPES or weight.layout != torch.strided:
        found = type(weight).__name__ if not is_tensor else weight.layout if weight.dtype in _DTYPES else weight.dtype
        raise LeafError(
            "The weight of a convolution is a dense tensor of real or complex floating-point numbers: float16, bfloat16, "
            "float32, float64, complex64 or complex128.",
            f"{found}",
            "convert it: weight.double(), weight.to_dense(), or torch.as_tensor(weight, dtype=torch.float64)",
        )
    if weight.ndim not in (3, 4, 5) or not weight.numel():
        raise StructureError(
            "The weight of a convolution has the shape [out_channels, in_channels / groups, *kernel], one to three axes of the "
            "kernel, none of them empty.",
            f"shape {list(weight.shape)}",
            "pass such a weight; kernel[None, None] for a bare kernel between images of one channel",
        )
    return tuple(weight.shape[2:])


def _input_shape(input_shape: Sequence[int], axes: int) -> tuple[int, ...]:
    given = list(input_shape) if isinstance(input_shape, Sequence) and not isinstance(input_shape, str) else None
    if given is None or len(given) != axes + 1:
        remedy = {axes: "put the number of channels in front", axes + 2: "leave out the batch axis: A @ x takes any batch"}
        raise StructureError(
            f"The input_shape of a convolution with {axes} spatial {'axis' if axes == 1 else 'axes'} is (in_channels, *size).",
            f"{given!r}" if given is not None else f"{input_shape!r}",
            remedy.get(len(given or ()), f"pass {axes + 1} numbers"),
        )
    return tuple(whole_number("Each entry of input_shape", value, 1) for value in given)


def _per_axis(name: str, value: Any, axes: int, least: int = 1) -> tuple[int, ...]:
    """One number an axis; a single one, or a sequence of one, holds for all axes, as in PyTorch."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (whole_number(name, value, least),) * axes
    numbers = tuple(whole_number(f"Each {name}", entry, least) for entry in value)
    if len(numbers) not in (1, axes):
        raise StructureError(
            f"{name} is one number, or one for each of the {axes} spatial axes.", f"{value!r}", "pass one number an axis"
        )
    return numbers if len(numbers) == axes else numbers * axes


def _padding(
    padding: Padding, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        return _named_padding(padding, kernel, stride, dilation)
    if isinstance(padding, Sequence) and any(isinstance(entry, Sequence) for entry in padding):
        if len(padding) != len(kernel):
            raise StructureError(
                "padding by pairs has one pair (before, after) for each spatial axis.",
                f"{padding!r} for {len(kernel)} axes",
                "pass one pair an axis",
            )
        return tuple(_pair(entry) for entry in padding)
    return tuple((cells, cells) for cells in _per_axis("padding", padding, len(kernel), 0))


def _pair(entry: Any) -> tuple[int, int]:
    if not isinstance(entry, Sequence):
        cells = whole_number("Each padding", entry, 0)
        return (cells, cells)
    if len(entry) != 2 or isinstance(entry, str):
        raise StructureError("A pair of paddings is (before, after).", f"{entry!r}", "pass two numbers")
    before, after = (whole_number("Each padding", cells, 0) for cells in entry)
    return (before, after)


def _named_padding(
    padding: str, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding != "same":
        raise StructureError(
            "padding is a number, numbers, pairs, 'same' or 'valid'.", f"padding={padding!r}", "use 'same' or 'valid'"
        )
    if any(s != 1 for s in stride):
        raise StructureError(
            "padding='same' keeps the size of the image, which a stride reduces.",
            f"stride={stride}",
            "use stride=1, or pass numbers as padding",
        )
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def _check_channels(weight: Tensor, channels: int, groups: int) -> None:
    whole_number("groups", groups, 1)
    if weight.shape[0] % groups:
        raise StructureError(
            "The number of groups divides the channels of the output.",
            f"weight of shape {list(weight.shape)}, so {weight.shape[0]} output channels, and groups={groups}",
            "pass a divisor",
        )
    if weight.shape[1] * groups != channels:
        raise StructureError(
            "A convolution reads images of as many channels as its weight has.",
            f"weight of shape {list(weight.shape)} with groups={groups}, so {weight.shape[1] * groups} channels, and "
            f"{channels} in input_shape",
            "pass input_shape=(in_channels, *size) for this weight (a transposed convolution is convolution(...).T)",
        )


def _check_sizes(g: Geometry) -> None:
    slack = {"circular": 0, "reflect": 1}.get(g.padding_mode)
    for axis in range(g.ndim):
        if slack is not None and max(g.padding[axis]) > g.size[axis] - slack:
            raise StructureError(
                f"padding_mode={g.padding_mode!r} needs a padding "
                + ("smaller than the image." if slack else "that is not larger than the image."),
                f"padding {g.padding[axis]} at spatial axis {axis}, of size {g.size[axis]}",
                "pad less, or use another padding_mode",
            )
        if g.reach[axis] > g.padded_size[axis]:
            raise StructureError(
                "The kernel fits into the padded image.",
                f"a kernel that spans {g.reach[axis]} cells (kernel {g.kernel[axis]}, dilation {g.dilation[axis]}), and a "
                f"padded image of {g.padded_size[axis]} cells, at spatial axis {axis}",
                "pad more, or use a larger image or a smaller kernel",
            )
