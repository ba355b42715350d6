"""The Gauss-Newton diagonal: the sum over outputs of squared derivatives, against the module's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hesse.check.modules.ledger import Ledger
from hesse.check.modules.specimen import Named, Specimen

METHODS = ("diag_hessian", "diagonal_hessian", "gauss_newton_diagonal")
_MOST = 2048  # outputs: each costs a backward pass
Diagonal = Callable[..., Any]


def check_diagonal(specimen: Specimen, ledger: Ledger, diagonal: Diagonal | None) -> None:
    """Compare a module's own diagonal, if it has one, with squared derivatives summed over every output.

    nn.Jacobian's `testDiagHessian` did this with hessian.lua, whose diagonal is that of 1/2 sum(y^2) with f'' dropped.

    Args:
        specimen, ledger: the module, and where to report.
        diagonal: of the inputs of a call; None for the module's method `diag_hessian` (or `diagonal_hessian`, or
            `gauss_newton_diagonal`), if it has one. It returns a dict by name of parameter or input ("weight", "inputs.0"),
            or a tensor, or a tuple, for the inputs in order.

    Cost: 1 evaluation and a backward pass for each output element.
    """
    s = specimen
    own = _bound(s.module, diagonal)
    if own is None:
        return
    count = sum(y.numel() for y in s.outputs.values())
    if count > _MOST:
        ledger.note(f"the diagonal was not compared: {count} outputs cost as many backward passes")
        return
    args, named = s.call.build(s.call.moving)
    found = _by_name(own(*args, **named), list(s.call.moving))
    expected = squares(s)
    unknown = [name for name in found if name not in expected]
    for name in unknown:
        ledger.note(f"the diagonal of '{name}' was not compared: no parameter or input of this name is differentiated")
    known = {name: value.detach() for name, value in found.items() if name in expected}
    if known:
        ledger.agree("Gauss-Newton diagonal", known, expected, words="beside the sum over outputs of squared derivatives")


def squares(specimen: Specimen) -> Named:
    """Sum over all output elements of squared absolute derivatives, by name.

    Cost: 1 evaluation and a backward pass for each output element.
    """
    s = specimen
    run = s.run()
    total = {name: torch.zeros_like(t.real if t.is_complex() else t).detach() for name, t in run.leaves.items()}
    for name, y in run.outputs.items():
        for flat in range(y.numel()):
            units = {other: torch.zeros_like(z) for other, z in run.outputs.items()}
            units[name].view(-1)[flat] = 1.0
            for leaf, g in run.pull(units).items():
                total[leaf] += g.abs().square()
    return total


def _bound(module: nn.Module, diagonal: Diagonal | None) -> Diagonal | None:
    """The diagonal of the module that is worked on, where it is a method of the user's."""
    if diagonal is None:
        return next((own for name in METHODS if callable(own := getattr(module, name, None))), None)
    owner, function = getattr(diagonal, "__self__", None), getattr(diagonal, "__func__", None)
    if function is not None and type(owner) is type(module):
        return getattr(module, function.__name__, diagonal)
    return diagonal


def _by_name(value: Any, inputs: list[str]) -> Named:
    if isinstance(value, Mapping):
        return {str(name): t for name, t in value.items() if isinstance(t, Tensor)}
    listed = value if isinstance(value, (tuple, list)) else (value,)
    return {name: t for name, t in zip(inputs, listed, strict=False) if isinstance(t, Tensor)}
