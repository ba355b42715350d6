"""What kind of function the user gave: run on a few numbers before it is run on all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from hesse.autodiff.recording import inside_functorch
from hesse.core.errors import HesseError, LeafError, NondeterministicError, StructureError
from hesse.nn.receptive_field.reductions import Reduce, whole
from hesse.operators.sparse import is_dual

_ASKED = "fn(pixel, weight) is an elementwise function of broadcastable tensors."
_TAPS, _GROUPS, _FILTERS, _POSITIONS = 3, 2, 2, 5
_SHAPE = (_TAPS, _GROUPS, _FILTERS, _POSITIONS)
_Kind = tuple[torch.dtype, torch.device]
_COUNT = math.prod(_SHAPE)


@dataclass(frozen=True)
class Examined:
    """A function that was found to be what it should, and the numbers that it was run on.

    Attributes:
        fn: the function.
        reduce: a name, or the user's reduction.
        dtype: of what fn returns.
    """

    fn: Any
    reduce: Reduce
    dtype: torch.dtype
    pixels: Tensor
    weights: Tensor

    @property
    def lasts(self) -> bool:
        """Whether the numbers outlive the call: not those of a transform, nor of a trace."""
        if torch.compiler.is_compiling() or type(self.pixels) is not Tensor:
            return False
        return not (is_functorch_wrapped_tensor(self.pixels) or is_functorch_wrapped_tensor(self.weights))

    def closes_over_variables(self) -> bool:
        """Whether what fn or reduce uses besides its arguments requires gradients, or carries tangents, at present.

        Raises:
            NondeterministicError: two calls of fn returned different numbers.
        """
        if torch.compiler.is_compiling() or inside_functorch():  # all terms are kept anyway
            return False
        recording = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            terms = self.fn(self.pixels, self.weights)
            if recording:
                _require_same(terms, self.fn(self.pixels, self.weights))
            values = [terms, whole(self.reduce, terms)] if callable(self.reduce) else [terms]
        return any((recording and value.requires_grad) or is_dual(value) for value in values)


def examine(fn: Any, reduce: Reduce, x: Tensor, weight: Tensor, extra: int) -> Examined:
    """Run fn on made-up numbers between 0 and 1, of the dtypes and on the device of the arguments.

    It runs outside of the transforms of `torch.func`, whose tensors die with them, unless fn itself closes over such tensors.

    Args:
        fn: the user's function.
        reduce: a name, or the user's reduction.
        x: the input, for its dtype and device.
        weight: ``[*weight_shape, ...]``, for its dtype, device and weight shape.
        extra: axes of the weight shape.

    Raises:
        StructureError: fn returned another shape than that of its arguments, is not elementwise, or changed one in place.
        LeafError: fn returned no tensor, or integers or truth values.
        NondeterministicError: a second call returned other numbers.
    """
    kinds, weight_shape = ((x.dtype, x.device), (weight.dtype, weight.device)), tuple(weight.shape[:extra])
    if torch.compiler.is_compiling() or not inside_functorch():
        return _examine(fn, reduce, kinds, weight_shape)
    try:
        with temporarily_clear_interpreter_stack():
            return _examine(fn, reduce, kinds, weight_shape)
    except HesseError:
        raise
    except Exception:  # fn closes over tensors of a transform, or fails by itself, which it will do again
        return _examine(fn, reduce, kinds, weight_shape)


def _examine(fn: Any, reduce: Reduce, kinds: Sequence[_Kind], weight_shape: tuple[int, ...]) -> Examined:
    comparable = not (inside_functorch() or torch.compiler.is_compiling())  # no number may be looked at there
    with torch.inference_mode(False), torch.enable_grad():
        pixels, weights = _numbers(_SHAPE, 0.21, 0.7, kinds[0]), _numbers((*weight_shape, *_SHAPE), 0.83, 0.27, kinds[1])
        terms = _call(fn, pixels, weights)  # a pixel and a weight for each term: what is done in place succeeds, and is seen
        _require_tensor(terms)
        _require_shape(terms, _SHAPE)
        if comparable:
            _require_elementwise(fn, pixels, weights, terms)
        pixels, weights = pixels[:, :, :1].clone(), weights[..., :1].clone()
        terms = _call(fn, pixels, weights)
        _require_shape(terms, _SHAPE)
        if comparable:
            _require_elementwise(fn, pixels, weights, terms)
    if isinstance(reduce, str) and reduce in ("max", "min", "logsumexp") and terms.is_complex():
        raise LeafError(_ASKED, f"{terms.dtype} returned, and reduce={reduce!r}", "return real numbers, or reduce by 'sum'")
    return Examined(fn, reduce, terms.dtype, pixels, weights)


def _require_same(terms: Tensor, again: Tensor) -> None:
    if not _same(terms, again):
        raise NondeterministicError(
            "A backward pass computes the terms again: fn(pixel, weight) returns the same each time.",
            "other numbers at the second call",
            "draw random numbers outside, and pass them as channels of the input or as weights",
        )


def _require_elementwise(fn: Any, pixels: Tensor, weights: Tensor, terms: Tensor) -> None:
    """Compare with the same call again, with the pairs in another order along a single axis, and with one pair alone."""
    _require_same(terms, _call(fn, pixels, weights))
    pairs = [t.expand(*t.shape[:-4], *_SHAPE).flatten(-4) for t in (pixels, weights)]
    order = torch.tensor(sorted(range(_COUNT), key=lambda i: i * 37 % 61), device=terms.device)
    for pick in (order, order[7:8]):
        shape = (len(pick), 1, 1, 1)
        few = _call(fn, *(pair[..., pick.to(pair.device)].unflatten(-1, shape) for pair in pairs))
        _require_shape(few, shape)
        if not _same(terms.flatten()[pick], few.flatten()):
            raise StructureError(
                _ASKED,
                "a number that changes when other pixels or weights are there",
                "combine the numbers of a window in reduce, and use neither sums nor statistics of the arguments in fn",
            )


def _numbers(shape: tuple[int, ...], start: float, end: float, kind: _Kind) -> Tensor:
    """In a scattered order: neighbors along each axis are far apart, also in a dtype of few digits."""
    dtype, device = kind
    count = math.prod(shape)
    order = torch.arange(count, device=device) * 37 % count
    return torch.linspace(start, end, count, device=device)[order].to(dtype).view(shape)


def _call(fn: Any, pixels: Tensor, weights: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return fn(pixels, weights)
    versions = pixels._version, weights._version
    result = fn(pixels, weights)
    if (pixels._version, weights._version) != versions:
        which = "pixels" if pixels._version != versions[0] else "weights"
        raise StructureError(
            "fn(pixel, weight) returns a new tensor and leaves its arguments as they are.",
            f"a function that changes its {which} in place",
            "use the operation without the trailing underscore, or clone the argument first",
        )
    return result


def _require_tensor(result: Any) -> None:
    if not isinstance(result, Tensor):
        raise LeafError(_ASKED, f"{type(result).__name__} returned", "return one tensor")
    if not (result.is_floating_point() or result.is_complex()):
        raise LeafError(_ASKED, f"{result.dtype} returned", "return floating-point numbers, e.g. result.to(pixel.dtype)")


def _require_shape(result: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(result, Tensor) or result.shape != shape:
        found = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise StructureError(
            _ASKED,
            f"a result of shape {found}, where pixel and weight broadcast to {shape}",
            "return one number for each pair; with a weight_shape, weight[i] is what broadcasts with pixel",
        )


def _same(a: Tensor, b: Tensor) -> bool:
    """Up to the rounding of vectorized code; 16-bit operations round the results of 32-bit ones, once each."""
    tolerance = torch.finfo(a.dtype).eps * (4 if a.dtype in (torch.float16, torch.bfloat16) else 100)
    return torch.allclose(a.detach(), b.detach(), rtol=tolerance, atol=tolerance, equal_nan=True)
