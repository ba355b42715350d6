"""Other cotangents: a gradient is linear in its cotangent, and does not see its strides."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from hesse.check.functions.case import Case
from hesse.check.functions.subject import Leaves
from hesse.check.layouts import expanded, layouts, slices
from hesse.core.random import normal

_FACTORS = (-1.0, 1e3, 1e-3)
_ADAPTIVE = 500.0  # roundings: backward passes that choose their steps by the cotangent's size are linear to 1e-10 only
_HOTS = {"quick": 2, "full": 8}


def scaled(case: Case) -> None:
    """Multiples, of both signs, and zero."""
    u, g = case.home.cotangents, case.home.gradient
    for factor in _FACTORS:
        found = lambda c=factor: (_pull(case, [c * t for t in u]), [c * t for t in g])  # noqa: E731
        case.agree(f"cotangent times {factor:g}", found, slack=_ADAPTIVE)
    if all(bool(t.isfinite().all()) for t in g):
        case.agree("zero cotangent", lambda: (_pull(case, [0 * t for t in u]), [0 * t for t in g]))


def added(case: Case) -> None:
    """The sum with another cotangent, and the parts of one: every output alone, and single elements."""
    home = case.home
    other = [normal(t.shape, t.dtype, t.device, home.generator) for t in home.cotangents]

    def both() -> tuple[Leaves, Leaves]:
        found = _pull(case, [a + b for a, b in zip(home.cotangents, other, strict=True)])
        return found, [a + b for a, b in zip(_pull(case, other), home.gradient, strict=True)]

    case.agree("sum of cotangents", both)
    for hot in _one_hot(home.cotangents, _HOTS[case.level], home.generator):

        def parts(hot: Leaves = hot) -> tuple[Leaves, Leaves]:
            rest = [u - h for u, h in zip(home.cotangents, hot, strict=True)]
            return [a + b for a, b in zip(_pull(case, hot), _pull(case, rest), strict=True)], home.gradient

        case.agree("one element of the cotangent and the rest", parts)


def alone(case: Case) -> None:
    """Outputs of which one alone has a cotangent, the others none at all."""
    u = case.home.cotangents
    for index in range(len(u) if len(u) > 1 else 0):

        def single(index: int = index) -> tuple[Leaves, Leaves]:
            only = [t if i == index else None for i, t in enumerate(u)]
            return case.home.graph.pull(only), _pull(case, [t if i == index else 0 * t for i, t in enumerate(u)])

        case.agree(f"output '{case.subject.output_names[index]}' alone has a cotangent", single)


def strides(case: Case) -> None:
    """Cotangents in other strides."""
    u = case.home.cotangents
    for index, own in enumerate(u):
        for kind, other in chain(layouts(own), slices(own)):

            def moved(i: int = index, t: Tensor = other) -> tuple[Leaves, Leaves]:
                return _pull(case, [*u[:i], t, *u[i + 1 :]]), case.home.gradient

            case.agree(f"{kind} cotangent", moved, words=f"only when the cotangent is {kind}")
        for flat in expanded(own):

            def spread(i: int = index, t: Tensor = flat) -> tuple[Leaves, Leaves]:
                return _pull(case, [*u[:i], t, *u[i + 1 :]]), _pull(case, [*u[:i], t.contiguous(), *u[i + 1 :]])

            case.agree("expanded cotangent", spread, words="only when the cotangent is expanded")


def _pull(case: Case, cotangents: Leaves) -> Leaves:
    return case.home.graph.pull(cotangents)


def _one_hot(cotangents: Leaves, count: int, generator: torch.Generator) -> Iterator[Leaves]:
    total = sum(u.numel() for u in cotangents)
    if total < 2:
        return
    for number in range(min(count, total)):
        place = number * (total - 1) // max(count - 1, 1)
        hot = [torch.zeros_like(u) for u in cotangents]
        for index, u in enumerate(cotangents):
            if 0 <= place < u.numel():
                where = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), u.shape)) if u.dim() else ()
                hot[index][where] = u[where]
            place -= u.numel()
        yield hot
