"""A module's derivative against differences in float64, along one random direction of everything that moves."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.check.check_report import Comparison, Finding
from hesse.check.diagnosis import diagnose_slopes
from hesse.check.differences import Difference, best_difference, has_kink
from hesse.check.functions.subject import inner, is_continuous
from hesse.check.modules.ledger import Ledger
from hesse.check.modules.specimen import Named, Specimen, fresh_copy
from hesse.core.random import normal

_STEPS = (1e-4, 1e-6, 1e-2)
_KINK_STEPS = (1e-3, 1e-5)
_BARS = 3.0
_TOLERANCE = 1e-7
_FINE, _USELESS = 1e-6, 1e-2
_FLOOR = 1e-8  # slopes this small beside the values are rounding


def exact_specimen(specimen: Specimen) -> Specimen | None:
    """The specimen in float64: a copy of the module and of its call; None where that cannot be made."""
    if not specimen.copyable:
        return specimen if _is_exact(specimen) else None
    try:
        own = fresh_copy(specimen.module)
        with torch.no_grad():
            own._apply(_widened)
        call = specimen.call.changed({name: _widened(t) for name, t in specimen.call.tensors().items()})
    except Exception:
        return None
    exact = copy.copy(specimen)
    exact.module, exact.call, exact.evaluations = own, call, 0
    return exact


def check_slope(exact: Specimen, ledger: Ledger, check: str) -> None:
    """Compare <gradient, v> with a difference along v, for a random direction v of all leaves and a random cotangent.

    Kinks at the very point decide nothing, and raise no alarm. A module that does not run in float64 is passed over.

    Cost: 1 gradient, and usually 4 evaluations; up to 60 where they disagree.
    """
    s = exact
    try:
        run = s.run()
        cotangents = {name: normal(y.shape, y.dtype, y.device, s.generator) for name, y in run.outputs.items()}
        gradients = run.pull(cotangents)
    except Exception:
        return
    home = {name: t.detach().clone() for name, t in run.leaves.items()}
    direction = {name: normal(t.shape, t.dtype, t.device, s.generator) * _size(t) for name, t in home.items()}
    for name, row in s.still.items():
        direction[name][row] = 0
    outputs = [y.detach() for y in run.outputs.values()]
    finite = all(bool(y.isfinite().all()) for y in outputs)
    if s.by_design or not direction or not finite or not _dtypes(outputs) <= {torch.float64}:
        return
    u, v = list(cotangents.values()), list(direction.values())
    slope = inner(v, [gradients[name] for name in direction])
    size, value = products(v, [gradients[name] for name in direction]), products(u, outputs)
    judge_slope(ledger, check, Slope(lambda t: inner(u, _at(s, home, direction, t)), slope, size, value))


@dataclass(frozen=True)
class Slope:
    """A function along a line, and its slope by reverse mode.

    Attributes:
        phi: ``t -> value``.
        reverse: the slope at 0.
        size: of such slopes.
        value: the size of the numbers whose rounding disturbs `phi`.
    """

    phi: Callable[[float], float]
    reverse: float
    size: float
    value: float

    def scale(self, found: Difference) -> float:
        """What a disagreement is measured against."""
        return max(self.size, _FLOOR * self.value, abs(found.value) if math.isfinite(found.value) else 0.0, 1e-30)

    def differs(self, found: Difference) -> bool:
        """Whether a difference contradicts the slope."""
        return not abs(self.reverse - found.value) <= _BARS * found.error + _TOLERANCE * self.scale(found)

    def difference(self) -> Difference:
        """The slope by differences. Cost: usually 4 evaluations."""
        return best_difference(self.phi, _STEPS, lambda d: d.error <= _FINE * self.scale(d) and not self.differs(d))


def judge_slope(ledger: Ledger, check: str, slope: Slope, leaf: str = "") -> bool:
    """Compare a slope with differences; a kink and rough differences decide nothing.

    Returns:
        Whether nothing is wrong.

    Cost: usually 4 evaluations.
    """
    found = slope.difference()
    wrong, scale = slope.differs(found), slope.scale(found)
    if wrong and any(has_kink(slope.phi, step) for step in _KINK_STEPS):
        ledger.note(f"{check}: a kink, of which differences say nothing")
        return True
    error, wrong = abs(slope.reverse - found.value) / scale, wrong and found.error <= _USELESS * scale
    ledger.rows.append(Comparison(ledger.prefix + check, leaf, 1, error if error == error else math.inf, found.error / scale,
                                  "wrong" if wrong else "ok"))  # fmt: skip
    if wrong:
        words = f"{diagnose_slopes([slope.reverse], [found.value])}{'' if leaf else '; of everything that moves'}"
        ledger.findings.append(Finding(ledger.prefix + check, leaf, None, slope.reverse, found.value, found.error, words))
    return not wrong


def along_kink(specimen: Specimen, direction: Named) -> bool:
    """Whether a module has a kink at its point, along a direction of its parameters and inputs.

    Args:
        specimen: the module.
        direction: by name, of everything that moves.

    Cost: up to 10 evaluations.
    """
    exact = exact_specimen(specimen)
    if exact is None:
        return False
    home = {**exact.parameters(), **exact.call.moving}
    home = {name: home[name].detach().clone() for name in direction}
    u = [t.to(_wide(t)) for t in specimen.cotangents.values()]
    v = {name: t.to(_wide(t)) for name, t in direction.items()}
    return any(has_kink(lambda t, s=exact: inner(u, _at(s, home, v, t)), step) for step in _KINK_STEPS)


def products(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The root of the sum of squares of the products of elements: the size of a random sum of such terms."""
    return math.sqrt(sum((x.abs().double() * y.abs().double()).square().sum().item() for x, y in zip(a, b, strict=True)))


def _at(s: Specimen, home: Named, direction: Named, t: float) -> list[Tensor]:
    moved = {name: x + t * direction[name] for name, x in home.items()}
    parameters = {name: moved[name] for name in s.parameters()}
    with torch.enable_grad():
        outputs = s.outputs_of(s.module, {name: x for name, x in moved.items() if name not in parameters}, parameters)
    return [y.detach() for y in outputs.values()]


def _widened(t: Tensor) -> Tensor:
    return t.to(_wide(t)) if is_continuous(t) else t


def _wide(t: Tensor) -> torch.dtype:
    return torch.complex128 if t.is_complex() else torch.float64


def _is_exact(s: Specimen) -> bool:
    return _dtypes([*s.parameters().values(), *s.call.moving.values()]) <= {torch.float64}


def _dtypes(tensors: list[Tensor]) -> set[torch.dtype]:
    return {t.real.dtype if t.is_complex() else t.dtype for t in tensors}


def _size(x: Tensor) -> float:
    return x.abs().double().square().mean().sqrt().item() or 1.0
