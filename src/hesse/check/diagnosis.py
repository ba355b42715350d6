"""What a wrong derivative looks like, in words."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CLOSE = 1e-3  # relative: words need no more
_NAMED = 3  # elements that are named


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
    if not wrong.any():
        return _small(found, expected)
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


def _small(found: Tensor, expected: Tensor) -> str:
    """Where every element is nearly right."""
    difference = (found - expected).abs()
    share = difference.max().item() / (expected.abs().max().item() or 1.0)
    wrong = difference > 0.1 * difference.max()
    return f"off by {share:.1g} of the largest element, in {_count(wrong)}" if share else "equal"


def diagnose_slopes(found: list[float], expected: list[float]) -> str:
    """The same from slopes along a few random directions."""
    return _factor(torch.tensor(found), torch.tensor(expected)) or "wrong along random directions"


def diagnose_pattern(found: Tensor, slopes: list[tuple[Tensor | None, float, float]]) -> tuple[str, Tensor] | None:
    """Name a pattern from a few slopes: what the right derivative would be if it were one, tried along each direction.

    Args:
        found: the derivative, one leaf.
        slopes: directions in it, the right slope along each, and its error bar.

    Returns:
        A few words, and the right derivative; None where no pattern explains every slope, or only one is there.
    """
    if len(slopes) < 2:
        return None
    for words, guess in _guesses(found):
        factor = _common_factor(guess, slopes)
        if factor is None:
            continue
        if not words and abs(factor - 1) < _CLOSE:
            continue
        plain = abs(factor - 1) < _CLOSE
        named = "wrong sign" if abs(factor + 1) < _CLOSE else f"factor {1 / factor:.3f}" if factor else "zero was expected"
        return " and ".join(part for part in (words, "" if plain else named) if part), factor * guess
    if not found.any():
        return "zero: missing, or cut off", torch.full_like(found, torch.nan)
    return None


def _guesses(found: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield "", found
    if found.dim() >= 2:
        yield (
            "transposed",
            found.mT.contiguous().view(found.shape) if found.shape[-1] == found.shape[-2] else found.reshape(found.mT.shape).mT,
        )
    if found.is_complex():
        yield "complex conjugate", found.conj()
    for axis in range(found.dim()):
        if found.shape[axis] > 1:
            yield "the elements are in the wrong order", found.flip(axis)
            yield "the elements are shifted by one", found.roll(1, axis)
            yield "the elements are shifted by one", found.roll(-1, axis)


def _common_factor(guess: Tensor, slopes: list[tuple[Tensor | None, float, float]]) -> float | None:
    """The factor by which a guess explains the slopes, if one does."""
    own = [(v.conj() * guess).sum().real.item() if v is not None else 0.0 for v, _, _ in slopes]
    norm = sum(s * s for s in own)
    if not norm or norm != norm:
        return None
    factor = sum(s * e for s, (_, e, _) in zip(own, slopes, strict=True)) / norm
    size = max(abs(e) for _, e, _ in slopes)
    fits = all(abs(factor * s - e) <= 1e-4 * size + 3 * bar for s, (_, e, bar) in zip(own, slopes, strict=True))
    return factor if fits else None


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
    if not mask.dim():
        return "the only element"
    count, where = int(mask.sum()), ", ".join(str(tuple(int(i) for i in row)) for row in mask.nonzero()[:_NAMED])
    return f"{count} of {mask.numel()} elements, {'at' if count <= _NAMED else 'among them'} {where}"


def _number(value: Tensor) -> str:
    number = value.item()
    is_real = not isinstance(number, complex) or abs(number.imag) < _CLOSE * abs(number)
    return f"{number.real if is_real else number:.3f}"
