"""What a wrong derivative looks like, in words."""

from __future__ import annotations

import torch
from torch import Tensor

_CLOSE = 1e-3  # relative: words need no more


def diagnose(found: Tensor, expected: Tensor) -> str:
    """Name the pattern by which a derivative differs from the right one: a factor, a sign, a transposition, a few elements.

    Args:
        found: the derivative, whole leaves.
        expected: the right one, of the same shape.

    Returns:
        A few words.
    """
    if found.isnan().any():
        return f"not a number in {_count(found.isnan())}"
    if found.isinf().any():
        return f"infinite in {_count(found.isinf())}"
    whole = _factor(found.flatten(), expected.flatten())
    if whole:
        return whole
    if found.is_complex() and _close(found, expected.conj()):
        return "complex conjugate"
    if found.dim() >= 2 and _is_transposed(found, expected):
        return "transposed"
    wrong = ~_alike(found, expected)
    if 2 * int(wrong.sum()) <= wrong.numel():
        pattern = _factor(found[wrong], expected[wrong])
        return f"wrong in {_count(wrong)}" + (f" ({pattern})" if pattern else "")
    if found.numel() > 1 and _close(found, expected.mean().expand_as(found)):
        return "averaged over the elements"
    if found.numel() > 1 and _close(found, expected.sum().expand_as(found)):
        return "summed over the elements: a broadcast is not undone right"
    if found.numel() > 1 and _close(_sorted(found), _sorted(expected)):
        return "the elements are in the wrong order"
    offset = (found - expected).mean()
    if found.numel() > 1 and _close(found - offset, expected):
        return f"off by the constant {_number(offset)}"
    return f"wrong in {_count(wrong)}, without a simple pattern"


def diagnose_slopes(found: list[float], expected: list[float]) -> str:
    """The same from slopes along a few random directions."""
    return _factor(torch.tensor(found), torch.tensor(expected)) or "wrong along random directions"


def _factor(found: Tensor, expected: Tensor) -> str:
    """A common factor, in words; empty if there is none."""
    if not found.any() and expected.any():
        return "zero: missing, or cut off"
    if found.any() and not expected.any():
        return "zero was expected"
    norm = (expected.conj() * expected).real.sum()
    if not norm:
        return ""
    factor = (expected.conj() * found).sum() / norm
    if not _close(found, factor * expected):
        return ""
    if abs(factor - 1) < _CLOSE:
        return ""
    return "wrong sign" if abs(factor + 1) < _CLOSE else f"factor {_number(factor)}"


def _is_transposed(found: Tensor, expected: Tensor) -> bool:
    flat = found.reshape(expected.mT.shape)
    return _close(flat, expected.mT) or (found.shape == expected.mT.shape and _close(found, expected.mT))


def _alike(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs() <= _CLOSE * (b.abs() + 1e-6 * b.abs().max())


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= _CLOSE * b.abs().max()) if a.numel() else True


def _sorted(values: Tensor) -> Tensor:
    return (values.real if values.is_complex() else values).flatten().sort().values


def _count(mask: Tensor) -> str:
    where = [tuple(int(i) for i in row) for row in mask.nonzero()[:3]]
    if not mask.dim():
        return "the only element"
    return f"{int(mask.sum())} of {mask.numel()} elements, at " + ", ".join(str(index) for index in where)


def _number(value: Tensor) -> str:
    number = value.item()
    is_real = not isinstance(number, complex) or abs(number.imag) < _CLOSE * abs(number)
    return f"{number.real if is_real else number:.3f}"
