"""One configuration inverted and scored: against `torch.linalg.pinv`, or by the Penrose equations where nothing is clear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.convolutions import certificate, ladder
from hesse.convolutions.inverse import Inverse
from hesse.convolutions.operator import Convolution
from hesse.core.errors import HesseError, StructureError
from tests.convolutions.configurations import Configuration
from tests.convolutions.exact import EPS, LONG, Spectrum, pseudo_solution, spectrum

ALLOWED = 100.0  # times the condition and the rounding unit
IMAGES = 3  # together: a single one may happen to lie where the pseudo-inverse sees nothing
Make = Callable[[Convolution, float | None], Inverse | None]


@dataclass(frozen=True)
class Score:
    """What became of a configuration.

    Attributes:
        kind: ``"right"``, ``"no gap"`` (and the Penrose equations hold), ``"inapplicable"``, ``"refused"``, ``"troubled"`` (it
            says that it missed the tolerance), or what is wrong.
        method: of the inverse.
        ratio: the error over `ALLOWED` times the condition and the rounding unit; at most 1 where all is right.
        condition: of what is kept.
        deficient: whether singular values are dropped.
        text: the configuration, and what was found.
    """

    kind: str
    method: str = ""
    ratio: float = 0.0
    condition: float = 1.0
    deficient: bool = False
    text: str = ""

    @property
    def fine(self) -> bool:
        return self.kind in ("right", "no gap", "inapplicable")


def made_by(method: str) -> Make:
    """By one way of the ladder; None where it does not apply."""

    def make(A: Convolution, rtol: float | None) -> Inverse | None:
        try:
            return ladder.inverse(A, rtol=rtol, method=method)
        except StructureError as error:
            if "does not apply" in str(error):
                return None
            raise

    return make


def score(c: Configuration, make: Make) -> Score:
    """Of one way to invert a configuration."""
    M = c.matrix()
    known = spectrum(M, c.rtol)
    about = (known.condition, known.rank < min(M.shape), f"{c}; condition {known.condition:.1e}, gap {known.gap:.1e}")
    try:
        A = c.operator()
        inverse = make(A, c.rtol)
        if inverse is None:
            return Score("inapplicable", "", 0.0, *about)
        kind, ratio, text = _compared(c, M, known, inverse) if known.clear else _penrose(c, M, known, inverse)
    except HesseError as error:
        return Score("refused", "", 0.0, *about[:2], f"{about[2]}: {type(error).__name__}: {error}")
    except Exception as error:
        return Score("crashed", "", 0.0, *about[:2], f"{about[2]}: {type(error).__name__}: {error}")
    return Score(kind, inverse.method, ratio, *about[:2], f"{about[2]}, {inverse.method}: {text}")


def relative(found: Tensor, true: Tensor) -> float:
    """``|found - true| / |true|``, of numbers of any size; infinite where one is not finite."""
    if not bool(torch.isfinite(found.abs()).all()):
        return float("inf")
    scale = float(true.abs().max())
    if scale == 0:
        return float("inf") if bool(found.abs().max() > 0) else 0.0
    return float((found / scale - true / scale).norm() / (true / scale).norm())


def _compared(c: Configuration, M: Tensor, known: Spectrum, inverse: Inverse) -> tuple[str, float, str]:
    m, n = M.shape
    Y, X = c.random(IMAGES, m), c.random(IMAGES, n)
    found = inverse.apply(Y.reshape(IMAGES, *c.out_shape))
    back = inverse.apply(X.reshape(IMAGES, *c.in_shape), adjoint=True)
    values = found.value.flatten(1), back.value.flatten(1)
    plus = torch.linalg.pinv(M, rtol=c.rtol)
    unit = ALLOWED * known.condition * EPS
    errors = [relative(values[0], Y @ plus.mT), relative(values[1], X @ plus.conj())]
    if max(errors) > unit and LONG and known.condition < 1e9:  # is it LAPACK's?
        true = [pseudo_solution(M, y, known.rank) for y in Y], [pseudo_solution(M.mH.resolve_conj(), x, known.rank) for x in X]
        errors = [relative(value, torch.stack(rows)) for value, rows in zip(values, true, strict=True)]
    ratio = max(errors) / unit
    text = f"errors {' '.join(f'{e:.1e}' for e in errors)}, allowed {unit:.1e}; {found.iterations} iterations"
    if found.trouble or back.trouble:
        return "troubled", ratio, f"{text}, {found.trouble or back.trouble}"
    if not ratio <= 1:
        trouble = certificate.certified(inverse, Y.reshape(IMAGES, *c.out_shape)).trouble
        text = f"{text}, truncated {inverse.truncated} and {min(m, n) - known.rank}"
        return ("troubled", ratio, f"{text}, {trouble}") if trouble else ("WRONG", ratio, text)
    return _facts(known, inverse, text, ratio, min(m, n))


def _facts(known: Spectrum, inverse: Inverse, text: str, ratio: float, full: int) -> tuple[str, float, str]:
    """Whether what the inverse says of itself is true."""
    if inverse.method == "krylov":  # counts nothing, and estimates from below
        return "right", ratio, text
    if inverse.truncated != full - known.rank:
        return "rank miscounted", ratio, f"{text}, truncated {inverse.truncated}, not {full - known.rank}"
    if known.gap * known.condition < 1e12 and not 0.1 < inverse.gap / known.gap < 10:
        return "gap misjudged", ratio, f"{text}, gap {inverse.gap:.1e}, not {known.gap:.1e}"
    top = float(known.values[0])
    if abs(inverse.norm() - top) > 0.05 * top:
        return "norm misjudged", ratio, f"{text}, norm {inverse.norm():.3e}, not {top:.3e}"
    condition = inverse.condition()
    if known.rank and not 0.3 < condition / known.condition < 3:
        return "condition misjudged", ratio, f"{text}, condition {condition:.1e}"
    return "right", ratio, text


def _penrose(c: Configuration, M: Tensor, known: Spectrum, inverse: Inverse) -> tuple[str, float, str]:
    """By the four equations, for whatever number of values it kept: those above a cut-off within a thousandth of that asked."""
    m, n = M.shape
    top = float(known.values[0])
    applied = inverse.apply(torch.eye(m, dtype=M.dtype).reshape(m, *c.out_shape))
    M, X = M / top, applied.value.flatten(1).mT * top
    cut = max(m, n) * EPS if c.rtol is None else c.rtol
    noise = 20 * max(m, n) * EPS
    size = float(torch.linalg.matrix_norm(X, 2))
    unit, MX, XM = ALLOWED * size * EPS, M @ X, X @ M
    missed = {
        "X M X = X": float(torch.linalg.matrix_norm(XM @ X - X, 2)) / size / unit,
        "(M X)^H = M X": float(torch.linalg.matrix_norm(MX - MX.mH, 2)) / unit,
        "(X M)^H = X M": float(torch.linalg.matrix_norm(XM - XM.mH, 2)) / unit,
        "M X M = M to the cut-off": float(torch.linalg.matrix_norm(MX @ M - M, 2)) / (1.001 * cut + unit + noise),
    }
    worst = max(missed, key=lambda name: missed[name] if missed[name] == missed[name] else float("inf"))
    ratio = missed[worst]
    kept = round(float(MX.diagonal().sum().real))
    text = f"no gap: kept {kept} of {known.rank}, {worst} to {ratio:.1e} of what is allowed; gap said {inverse.gap:.2e}"
    if applied.trouble:
        return "troubled", ratio, f"{text}, {applied.trouble}"
    if not ratio <= 1:
        trouble = certificate.certified(inverse, c.random(1, *c.out_shape)).trouble
        return ("troubled", ratio, f"{text}, {trouble}") if trouble else ("PENROSE", ratio, text)
    if c.rtol is not None and size > 1.001 / cut:
        return "kept too much", ratio, text
    if kept < min(m, n) and kept == known.rank and not inverse.gap < 10 and known.gap < 3:
        return "gap not reported", ratio, text
    return "no gap", ratio, text
