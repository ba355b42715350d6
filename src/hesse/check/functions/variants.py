"""The same function at other points: other regions, sizes of the batch, no elements at all, and indices that occur twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hesse.check.check_report import Finding
from hesse.check.functions.case import Case, first_line, has_ties
from hesse.check.functions.judging import judge
from hesse.check.functions.spot import Spot
from hesse.check.functions.subject import BudgetSpent, Leaves, Subject
from hesse.check.functions.values import random_cotangents
from hesse.core.random import normal

COST = 6  # evaluations that a comparison at another point usually takes
_REDRAWN = 6  # leaves that are drawn anew in their range
_SHIFT = 1e-2  # how far, relatively, beside a point with equal elements
_SOUGHT = 100_000  # elements of a leaf among which equal ones are sought
_BEYOND = 0.1  # of a range: so far beyond it numbers are drawn


def regions(case: Case) -> None:
    """Points in other regions: signs flipped, smaller and larger numbers. Cost: 5 evaluations a point.

    At level full, leaves that are not moved so far (see `data_leaves`) are drawn anew within the range of their elements.
    """
    for words, move in _moves(case):
        if case.wrong or case.subject.budget.left < COST:
            return
        point = [case.home.kept(leaf, move(x)) if leaf in data_leaves(case) else x for leaf, x in enumerate(case.home.point)]
        check, only = f"reverse mode at {words}", "only in a region of x"
        text = compare_elsewhere(case, check, case.subject, point, case.home.cotangents, only)
        if text:
            report_raised(case, check, text, only)
    if case.level == "full":
        _redrawn(case)


def _redrawn(case: Case) -> None:
    """Other leaves of a function anew, one by one: in the range of their elements, and a little beyond; no parameters."""
    home, only = case.home, "only in a region of x"
    if _are_inputs(case.names):
        return
    for leaf in [leaf for leaf, x in enumerate(home.point) if leaf not in data_leaves(case) and not x.is_complex()][:_REDRAWN]:
        for _ in range(2):
            if case.wrong or case.subject.budget.left < COST:
                return
            x = home.point[leaf]
            low, high = x.min(), x.max()
            share = torch.rand(x.shape, generator=home.generator, dtype=torch.float64).to(device=x.device, dtype=x.dtype)
            drawn = low + (high - low) * ((1 + 2 * _BEYOND) * share - _BEYOND)
            check = f"reverse mode at other numbers in '{case.names[leaf]}'"
            point = [*home.point[:leaf], home.kept(leaf, drawn), *home.point[leaf + 1 :]]
            text = compare_elsewhere(case, check, case.subject, point, home.cotangents, only)
            if text:
                report_raised(case, check, text, only)


def data_leaves(case: Case) -> set[int]:
    """The leaves that are moved to other regions: inputs, where names say so; else the first.

    Parameters in other regions may leave the domain where a function is itself: iterations that converge no longer, say.
    """
    return _are_inputs(case.names) or {0}


def _are_inputs(names: list[str]) -> set[int]:
    """The leaves that are inputs of a module, as their names say."""
    return {leaf for leaf, name in enumerate(names) if name.partition(".")[0] == "inputs"}


def _moves(case: Case) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    generator = case.home.generator
    yield "the point's elements scaled and flipped at random", lambda x: x * _factors(x, generator)
    if case.level == "quick":
        return
    yield "the point's elements scaled and flipped at random once more", lambda x: x * _factors(x, generator)
    yield "-3 times the point", lambda x: -3 * x
    for factor in (-1.0, 3.0, 0.1, -0.1, 10.0, -10.0, 1e-3, 30.0, 100.0):
        yield f"{factor:g} times the point", lambda x, c=factor: c * x
    yield "the point's absolute values", lambda x: x.abs() if not x.is_complex() else x
    yield "minus the point's absolute values", lambda x: -x.abs() if not x.is_complex() else -x
    for size in (0.3, 1.0, 3.0, 10.0, 30.0):
        yield f"random numbers of size {size:g}", lambda x, c=size: c * normal(x.shape, x.dtype, x.device, generator)
    for shift in (1.0, -1.0, 5.0, -5.0, 0.5):
        yield f"the point shifted by {shift:g}", lambda x, c=shift: x + c


def _factors(x: Tensor, generator: torch.Generator) -> Tensor:
    """Factors of both signs, from a tenth to ten."""
    exponents = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
    signs = 2 * torch.randint(0, 2, x.shape, generator=generator) - 1
    return (signs * 10**exponents).to(device=x.device, dtype=x.real.dtype)


def compare_elsewhere(
    case: Case,
    check: str,
    subject: Subject,
    point: Leaves,
    cotangents: Leaves | None,
    words: str,
    shapes: list[tuple[int, ...]] | None = None,
) -> str:
    """Compare at another point, unless the function refuses it, is not finite there, has a kink, or other shapes than these.

    Returns:
        What the backward pass raised there.
    """
    try:
        graph = subject.record(point)
    except BudgetSpent:
        raise
    except Exception:  # the function is not made for this point
        return ""
    if not all(bool(y.isfinite().all()) for y in graph.outputs):
        return ""
    if shapes is not None and [tuple(y.shape) for y in graph.outputs] != shapes:  # something was broadcast
        return ""
    if cotangents is None:
        cotangents = random_cotangents([y.detach() for y in graph.outputs], case.home.generator)
    try:
        spot = Spot(subject, point, cotangents, case.home.precision, case.home.generator, graph)
    except BudgetSpent:
        raise
    except Exception as error:
        case.raised[check] = subject.place(point, cotangents)
        return "" if isinstance(error, (AssertionError, NotImplementedError)) else f"raises {first_line(error)}"
    if not all(bool(g.isfinite().all()) for g in spot.gradient):
        _undefined(case, check, spot, words)
        return ""
    slope = spot.slope(next(spot.directions(1)))
    if slope.kink or slope.verdict == "undecided" or (slope.verdict == "wrong" and _is_right_beside(case, spot)):
        return ""
    judge(case, check, [slope], spot, words)
    return ""


def _is_right_beside(case: Case, spot: Spot) -> bool:
    """Whether elements of a point are equal or zero, and the gradient is right beside it, where they are not.

    There a function may have slopes along all directions that are no linear function of them (a median), and no gradient.

    Cost: 5 evaluations where elements are equal or zero.
    """
    if spot.subject.is_sparse or not any(has_ties(x) for x in spot.point if x.numel() <= _SOUGHT):
        return False
    moved = [x + _SHIFT * spot.random(leaf) for leaf, x in enumerate(spot.point)]
    try:
        beside = Spot(spot.subject, moved, spot.cotangents, spot.precision, spot.generator)
    except BudgetSpent:
        raise
    except Exception:
        return False
    slope = beside.slope(next(beside.directions(1)))
    return beside.is_finite and slope.verdict == "ok" and not slope.kink


def _undefined(case: Case, check: str, spot: Spot, words: str) -> None:
    """A gradient that is not finite where the slope is."""
    for leaf, g in enumerate(spot.gradient):
        odd = ~g.isfinite()
        if bool(odd.any()):
            place = tuple(int(i) for i in odd.nonzero()[0])
            unit = torch.zeros_like(g)
            unit[place] = spot.sizes[leaf]
            found, rough = spot.plain(spot.within(leaf, unit))
            if not rough and found.error <= 1e-4 * abs(found.value):
                case.row(check, case.names[leaf], 1, float("inf"), 0.0, "wrong")
                size = spot.sizes[leaf]
                case.findings.append(Finding(check, case.names[leaf], place, g[place].item(), found.value / size,
                                             found.error / size, f"not finite; {words}",
                                             spot.subject.place(spot.point, spot.cotangents)))  # fmt: skip
            return


def duplicates(case: Case) -> None:
    """The same index twice in an integer tensor of x. Cost: 6 evaluations for each integer tensor."""
    integer = [path for path, t in case.subject.constants.items() if _is_index(t)]
    for path in integer:
        if case.wrong or case.subject.budget.left < COST:
            return
        subject = case.subject.variant(lambda p, t, path=path: _doubled(t) if p == path else t)
        check, words = f"duplicated indices in '{path}'" if path else "duplicated indices", "only where an index occurs twice"
        text = compare_elsewhere(case, check, subject, case.home.point, None, words)
        if text:
            report_raised(case, check, text, words)


def _is_index(t: Tensor) -> bool:
    return t.dtype in (torch.int64, torch.int32) and t.numel() > 1 and t.dim() > 0


def _doubled(t: Tensor) -> Tensor:
    """The first half of the indices again in the place of the second, along the last axis."""
    flat = t.clone()
    width = t.shape[-1]
    if width > 1:
        flat[..., width - width // 2 :] = flat[..., : width // 2]
    else:
        flat[t.shape[0] - t.shape[0] // 2 :] = flat[: t.shape[0] // 2]
    return flat


def batch_sizes(case: Case) -> None:
    """Other lengths of the first axis: one alone, one more, one less, odd ones, none. Cost: 5 evaluations a length."""
    axis = _batch_axis(case)
    if axis is None or case.subject.is_sparse:
        return
    lengths = (1, axis + 1, 0) if case.level == "quick" else (1, axis + 1, axis - 1, 2, 3, 5, 7, 2 * axis, 2 * axis + 1, 33, 0)
    raised: dict[int, str] = {}
    for length in dict.fromkeys(lengths):
        if case.wrong or case.subject.budget.left < (COST if length else 1):
            break
        if length != axis and length >= 0:
            raised[length] = _other_length(case, axis, length)
    _judge_raised(case, axis, {length: text for length, text in raised.items() if length})


def _judge_raised(case: Case, axis: int, raised: dict[int, str]) -> None:
    """A backward pass that raises at some lengths is wrong; one that raises at the shortest ones is made for longer ones."""
    if any(raised.values()) and sum(length < axis for length in raised) < 2 and axis > 2 and case.subject.budget.left >= COST:
        raised[2] = _other_length(case, axis, 2)
    shorter = [text for length, text in raised.items() if length < axis]
    for length, text in raised.items():
        if text and length < axis and ((raised.get(1) and raised.get(2)) or (all(shorter) and len(shorter) > 1)):
            case.note(f"with fewer rows the backward pass {text}")
        elif text:
            report_raised(case, f"reverse mode at {length} rows", text, _only(length))


def _only(length: int) -> str:
    elements = "element" if length == 1 else "elements"
    return f"only where the first axis has {length} {elements} (a function that is not made for so many may refuse them)"


def _other_length(case: Case, axis: int, length: int) -> str:
    """Compare at another length; what the backward pass raises there."""
    subject = case.subject.variant(lambda path, t: _resized(t, axis, length))
    if not length:
        _no_elements(case, subject)
        return ""
    shapes = [(length, *y.shape[1:]) if y.dim() and y.shape[0] == axis else tuple(y.shape) for y in case.home.outputs]
    words = _only(length)
    return compare_elsewhere(case, f"reverse mode at {length} rows", subject, subject.leaves, None, words, shapes)


def report_raised(case: Case, check: str, text: str, words: str) -> None:
    """Note that a backward pass raised: what it raised, and where only."""
    case.row(check, "", 1, float("inf"), 0.0, "wrong")
    case.findings.append(Finding(check, "", None, None, None, 0.0, f"{text}; {words}", case.raised.get(check)))


def _batch_axis(case: Case) -> int | None:
    """A length that only first axes have, and that, if outputs have axes at all, the first axis of an output has."""
    tensors = [*case.home.point, *case.subject.constants.values()]
    first = {t.shape[0] for t in tensors if t.dim()}
    others = {length for t in tensors for length in t.shape[1:]}
    batched = {y.shape[0] for y in case.home.outputs if y.dim()}
    for length in (x.shape[0] for x in case.home.point if x.dim()):
        alone = all(t.dim() > 1 or t.shape[0] != length for t in case.home.point if t.dim()) or len(first) == 1
        if length not in others and (length in batched or (not batched and len(first) == 1)) and alone:
            return length
    return None


def _resized(t: Tensor, axis: int, length: int) -> Tensor:
    if not t.dim() or t.shape[0] != axis:
        return t
    if length <= axis:
        return t[:length].clone()
    copies = [t * (1 + 0.1 * k) if t.is_floating_point() or t.is_complex() else t for k in range(-(-length // axis))]
    return torch.cat(copies)[:length].clone()


def _no_elements(case: Case, subject: Subject) -> None:
    """Zero-size leaves: where the forward pass runs, the backward pass has to, and gives gradients of the right shapes."""
    try:
        graph = subject.record(subject.leaves)
    except BudgetSpent:
        raise
    except Exception:
        return
    if not all(bool(y.isfinite().all()) for y in graph.outputs):
        return
    cotangents = [torch.ones_like(y) for y in graph.outputs]
    try:
        gradient = graph.pull(cotangents)
        empty = all(not y.numel() for y in graph.outputs)
        bad = [name for name, g, x in zip(case.names, gradient, subject.leaves, strict=True)
               if g.shape != x.shape or (empty and bool((g != 0).any()))]  # fmt: skip
        words = f"the gradient of '{bad[0]}' is of another shape, or not zero" if bad else ""
    except Exception as error:
        case.note(f"without elements the backward pass raises {first_line(error)}")
        return
    case.row("no elements", "", 1, float("inf") if words else 0.0, 0.0, "wrong" if words else "ok")
    if words:
        case.findings.append(Finding("no elements", "", None, None, None, 0.0, f"{words}; only where a leaf has no elements"))
