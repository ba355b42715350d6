"""The options of a receptive-field convolution, as `torch.nn.Conv2d` takes them, made a geometry or refused."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hesse.core.errors import LeafError, StructureError
from hesse.nn.receptive_field.geometry import MODES

Size = int | Sequence[int]
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
_ASKED = "A receptive-field convolution takes the options of torch.nn.Conv2d."


def refused(found: str, remedy: str) -> StructureError:
    """The error for an option that has no meaning."""
    return StructureError(_ASKED, found, remedy)


def is_int(value: Any) -> bool:
    """Whether a value is an integer, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def per_axis(value: Size, dims: int, what: str, *, least: int = 1) -> tuple[int, ...]:
    """One integer for each axis.

    Args:
        value: one for all, or one for each.
        dims: axes.
        what: how the error names it.
        least: smallest that is allowed.

    Raises:
        StructureError: not that many integers, or too small ones.
    """
    values: tuple[Any, ...] = tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims
    if len(values) != dims or not all(is_int(v) and v >= least for v in values):
        raise refused(f"{what}={value!r}", f"pass an integer of at least {least}, or {dims} of them")
    return values


def padding_pairs(
    padding: Size | str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Pixels before and after along each axis; "same" puts the odd one behind, as PyTorch does.

    Args:
        padding: an integer, one for each axis, "same" or "valid".
        kernel: taps along each axis.
        stride: along each axis; 1 where the padding is "same".
        dilation: along each axis.

    Raises:
        StructureError: another text, "same" with strides, or no such integers.
    """
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        if any(s != 1 for s in stride):
            raise refused(f"padding='same' with stride={tuple(stride)}", "use stride=1, or give the padding as integers")
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, str):
        raise refused(f"padding={padding!r}", "choose 'same', 'valid', an integer, or one for each axis")
    return tuple((p, p) for p in per_axis(padding, len(kernel), "padding", least=0))


def require_channels(in_channels: int, out_channels: int, groups: int) -> None:
    """Refuse numbers of channels and groups that do not go together.

    Raises:
        StructureError: not positive integers, or groups that do not divide both numbers of channels.
    """
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
        if not (is_int(value) and value >= 1):
            raise refused(f"{name}={value!r}", "pass a positive integer")
    if in_channels % groups or out_channels % groups:
        raise refused(
            f"groups={groups} with in_channels={in_channels} and out_channels={out_channels}",
            "take a number of groups that divides both",
        )


def require_function(fn: Any) -> None:
    """Refuse what cannot be called with a pixel and a weight, as far as its signature says.

    Raises:
        StructureError: naming it.
    """
    remedy = "pass a function of (pixel, weight), or a module with such a forward"
    if not callable(fn) or isinstance(fn, type):
        raise refused(f"fn={fn!r}" + (", a class" if isinstance(fn, type) else ""), remedy)
    try:
        signature = inspect.signature(fn.forward if isinstance(fn, nn.Module) else fn)
    except (TypeError, ValueError):  # built-in functions have none
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise refused(f"fn={fn!r}, which takes {signature}", remedy) from error


def require_dtype(dtype: torch.dtype | None) -> None:
    """Refuse parameters of numbers that cannot be trained or computed with.

    Raises:
        LeafError: naming the dtypes.
    """
    if dtype is not None and dtype not in _DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES)
        raise LeafError(_ASKED, f"dtype={dtype}", f"choose one of {names}")


def require_mode(mode: str, value: float) -> None:
    """Refuse unknown padding modes, and a padding value that the mode would not use.

    Raises:
        StructureError: naming the modes.
    """
    if mode not in MODES:
        raise refused(f"padding_mode={mode!r}", f"choose one of {', '.join(map(repr, MODES))}")
    if value and mode != "zeros":
        raise refused(f"padding_value={value!r} with padding_mode={mode!r}", "leave padding_mode='zeros' to pad with a value")
