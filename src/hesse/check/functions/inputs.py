"""The same point in other strides, in part, and with one tensor in two places."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hesse.autodiff.recording import nodes
from hesse.check.functions.case import Case, differentiates, first_line, largest
from hesse.check.functions.subject import BudgetSpent, Graph, Leaves
from hesse.check.layouts import expanded, layouts

_SUBSETS = {"quick": 4, "full": 64}


def strides(case: Case) -> None:
    """All leaves in other strides, of one kind after the other. Cost: 2 to 4 evaluations; 1 for each leaf of a wrong kind."""
    point = case.home.point
    kinds: dict[str, Leaves] = {}
    for index, x in enumerate(point):
        for kind, other in layouts(x):
            kinds.setdefault(kind, list(point))[index] = other
    for kind, moved in kinds.items():
        if _differs(case, moved, case.home.outputs, case.home.gradient) is None:
            case.row(f"{kind} input", "", 1, 0.0, 0.0, "ok")
            continue
        changed = [i for i in range(len(point)) if moved[i] is not point[i]]
        single = [[*point[:i], moved[i], *point[i + 1 :]] for i in changed] if len(changed) > 1 else [moved]
        for one in single:
            _report(case, kind, one, case.home.outputs, case.home.gradient)


def expanded_inputs(case: Case) -> None:
    """Leaves repeated by strides of zero, against copies of them. Cost: 4 evaluations."""
    slices = [expanded(x) for x in case.home.point]
    most = 1 if case.level == "quick" else 2
    for number in range(min(most, max((len(s) for s in slices), default=0))):
        point = [s[min(number, len(s) - 1)] if s else x for s, x in zip(slices, case.home.point, strict=True)]
        plain = [x.contiguous() for x in point]
        try:
            graph = case.subject.record(plain)
            values, gradient = [y.detach() for y in graph.outputs], graph.pull(case.home.cotangents)
        except BudgetSpent:
            raise
        except Exception as error:
            case.note(f"expanded input: the function raises {first_line(error)}")
            return
        if all(bool(y.isfinite().all()) for y in values):
            _report(case, "expanded", point, values, gradient)


def _differs(case: Case, point: Leaves, values: Leaves, gradient: Leaves) -> tuple[Leaves, Leaves] | None:
    """Values and gradients at a point, unless they are as expected or the function refuses the point."""
    try:
        graph = case.subject.record(point)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        case.note(f"with other strides of its input the function raises {first_line(error)}")
        return None
    found = graph.pull(case.home.cotangents)
    own = [y.detach() for y in graph.outputs]
    same = case.close(found, gradient) and case.close(own, values, by_leaf=False, sizes=_sizes(case))
    return None if same else (own, found)


def _sizes(case: Case) -> list[float]:
    """Of the values at the point itself: where a constant is normalized, what is left of it is rounding beside them."""
    return [largest(y) for y in case.home.outputs]


def _report(case: Case, kind: str, point: Leaves, values: Leaves, gradient: Leaves) -> None:
    check = f"{kind} input"
    words = f"only when the input is {kind}"
    try:
        differing = _differs(case, point, values, gradient)
    except BudgetSpent:
        raise
    except Exception as error:
        case.agree(check, lambda error=error: _raise(error), words=words)
        return
    if differing is None:
        case.row(check, "", 1, 0.0, 0.0, "ok")
        return
    own, found = differing
    plain = [x.contiguous() for x in point]
    if not case.close(own, values, by_leaf=False, sizes=_sizes(case)):
        if case.subject.draws:
            case.note(f"{check}: the function draws random numbers, others for other strides")
        elif _reads_strides(case, point):
            case.note(f"{check}: the function reads strides (as_strided), so that it is another function there")
        else:
            case.same(f"value with {check}", own, values, words=words, by_leaf=False, sizes=_sizes(case))
    elif case.spot(case.subject, plain).is_kink():
        case.note(f"{check}: a kink, where several gradients are right")
    else:
        case.same(check, found, gradient, words=words)


def _raise(error: Exception) -> tuple[Leaves, Leaves]:
    raise error


def _reads_strides(case: Case, point: Leaves) -> bool:
    outputs = case.subject.record(point).outputs
    return any("AsStrided" in type(node).__name__ for node in nodes([y.grad_fn for y in outputs if y.grad_fn is not None]))


def subsets(case: Case) -> None:
    """Some leaves alone require gradients. Cost: 1 evaluation for each subset."""
    count = len(case.home.point)
    if count < 2:
        return
    for subset in _subsets(count, _SUBSETS[case.level], case.home.generator):
        if case.subject.budget.left < 1:
            return

        try:
            graph = case.subject.record(case.home.point, only=subset)
        except RuntimeError as error:
            if not differentiates(error):
                raise
            case.differentiates = True
            case.note("subsets of leaves: the function differentiates by a leaf itself, which is to require gradients")
            return

        def some(subset: tuple[int, ...] = subset, graph: Graph = graph) -> tuple[Leaves, Leaves]:
            own = [graph.own[i] for i in subset]
            gradients = Graph(own, graph.outputs, graph.inside).pull(case.home.cotangents)
            found = list(case.home.gradient)
            for i, g in zip(subset, gradients, strict=True):
                found[i] = g
            return found, case.home.gradient

        names = ", ".join(f"'{case.names[i]}'" for i in subset)
        case.agree(f"{names} alone requires gradients" if len(subset) <= 3 else f"{len(subset)} leaves alone require gradients",
                   some, words="only where the others are constants")  # fmt: skip


def _subsets(count: int, most: int, generator: torch.Generator) -> Iterator[tuple[int, ...]]:
    """Each leaf alone and all but each, where that is few enough; else random halves and their complements."""
    if count <= most:
        yield from ((index,) for index in range(count))
        if count > 2 and 2 * count <= most:
            yield from (tuple(i for i in range(count) if i != index) for index in range(count))
        return
    for _ in range(max(1, most // 2)):
        chosen = torch.rand(count, generator=generator) < 0.5
        yield from (
            half for half in (tuple(chosen.nonzero().flatten().tolist()), tuple((~chosen).nonzero().flatten().tolist())) if half
        )


def shared(case: Case) -> None:
    """One tensor in the place of two leaves of one shape: its gradient is the sum of both. Cost: 2 evaluations."""
    point = case.home.point
    if case.differentiates:  # by the tensor in one place, which is then the one in the other too
        return
    pairs = [(i, j) for j in range(len(point)) for i in range(j)
             if point[i].shape == point[j].shape and point[i].dtype == point[j].dtype]  # fmt: skip
    for i, j in pairs[:1]:
        same = [point[i] if k == j else x for k, x in enumerate(point)]
        try:
            graph = case.subject.record(same)
        except (RuntimeError, ValueError, ArithmeticError):
            return
        if not all(bool(y.isfinite().all()) for y in graph.outputs):
            return
        expected = graph.pull(case.home.cotangents)

        def both(i: int = i, j: int = j, expected: Leaves = expected) -> tuple[Leaves, Leaves]:
            own = [x.detach().requires_grad_() for x in point]
            own[j] = own[i]
            graph = Graph(own, case.subject.continued(own), case.home.graph.inside)
            total = graph.pull(case.home.cotangents)[i]
            return [total, total], [expected[i] + expected[j]] * 2

        case.agree(f"one tensor as '{case.names[i]}' and '{case.names[j]}'", both, words="only where two leaves are one tensor")
