"""A function under `torch.vmap`, where it runs there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hesse.autodiff.recording import nodes
from hesse.check.check_report import Finding
from hesse.check.functions.case import Case, first_line
from hesse.check.functions.spot import Spot
from hesse.check.functions.subject import BudgetSpent, Graph, Leaves


def batched(case: Case) -> None:
    """Three points at once against one after the other: values, and the gradients through `torch.vmap`.

    The mapped axis stands first, then last; where there are several leaves, only the first of them is mapped in the end.
    A function without a rule for `vmap` is noted, and an operation of torch whose rule raises for one axis only.

    Cost: 3 to 4 evaluations.
    """
    home = case.home
    if case.subject.draws:
        case.note("vmap: not compared, as the function draws random numbers, others for a stack")
        return
    spots = [home, case.beside(), case.beside(1) if case.level == "full" else home]
    if case.subject.is_sparse or not all(bool(g.isfinite().all()) for spot in spots for g in spot.gradient):
        return
    if spots[1] is home or not _agree(case, spots, 0, "vmap"):
        return
    if not _agree(case, spots, -1, "vmap over the last axis") or len(home.point) < 2 or case.level == "quick":
        return
    mixed = [case.spot(case.subject, [spot.point[0], *home.point[1:]]) for spot in spots]
    if all(spot.is_finite for spot in mixed):
        _agree(case, mixed, 0, "vmap over one leaf", only=1)


def _agree(case: Case, spots: Sequence[Spot], axis: int, check: str, only: int | None = None) -> bool:
    """Compare; whether all is well, so that it is worth going on."""
    count = len(case.home.point) if only is None else only
    stacked = [torch.stack([spot.point[leaf] for spot in spots]).movedim(0, axis) for leaf in range(count)]
    dims = [axis if leaf < count else None for leaf in range(len(case.home.point))]
    try:
        own = [t.detach().requires_grad_() for t in [*stacked, *case.home.point[count:]]]
        with torch.enable_grad():
            outputs = torch.vmap(case.subject.outputs, in_dims=(dims,), randomness="same")(own)
        gradient = Graph(own, list(outputs)).pull([torch.stack([u] * len(spots)) for u in case.home.cotangents])
    except BudgetSpent:
        raise
    except Exception as error:
        if axis == 0 or not _has_own_rules(case.home):  # torch's rules for a mapped axis are not the function's
            case.note(f"no {check}: {first_line(error)}")
        else:  # it runs over the first axis
            case.row(f"value under {check}", "", 1, float("inf"), 0.0, "wrong")
            words = f"raises {first_line(error)}; the mapped axis need not be the first"
            case.findings.append(Finding(f"value under {check}", "", None, None, None, 0.0, words))
        return False
    values = [_stack([spot.outputs[i] for spot in spots]) for i in range(len(outputs))]
    good = case.same(f"value under {check}", list(outputs), values, words=f"only under {check}", by_leaf=False)
    expected = [torch.stack([spot.gradient[leaf] for spot in spots], axis) for leaf in range(count)]
    whole = [sum((spot.gradient[leaf] for spot in spots), torch.zeros_like(case.home.point[leaf]))
             for leaf in range(count, len(case.home.point))]  # fmt: skip
    if good and not case.close(gradient, [*expected, *whole]) and any(spot.is_kink() for spot in spots[:2]):
        case.note(f"{check}: a kink, where several gradients are right")
        return False
    return good and case.same(f"gradient through {check}", gradient, [*expected, *whole], words=f"only under {check}")


def _has_own_rules(spot: Spot) -> bool:
    """Whether an operation on the way is defined in Python, and its rule for a mapped axis with it."""
    graph = nodes([y.grad_fn for y in spot.graph.outputs if y.grad_fn is not None])
    return any(isinstance(node, torch.autograd.function.BackwardCFunction) for node in graph)


def _stack(parts: Leaves) -> Tensor:
    return torch.stack(parts)
