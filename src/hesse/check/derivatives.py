"""`check_derivatives`: every derivative of a function of a tree against differences that share no code with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch

from hesse.check.check_report import CheckReport, Comparison, Finding, WrongDerivativeError
from hesse.check.diagnosis import diagnose
from hesse.check.differences import EPSILON
from hesse.check.first_order import FirstOrder, first_line
from hesse.check.second_order import SecondOrder
from hesse.check.subject import Leaves, Subject
from hesse.check.usage import Usage
from hesse.check.verdicts import Precision
from hesse.core.errors import NondeterministicError, NonFiniteError, StructureError
from hesse.core.random import make_generator, normal
from hesse.core.tree import Tree

Level = Literal["quick", "full"]
_ELEMENTS = {"quick": 12, "full": 256}  # so many elements of x are compared one by one
_DIRECTIONS = {"quick": 1, "full": 4}
_SHADOW = 0.3  # a run in float64 has to give the same values, to the square root of the own rounding times this


def check_derivatives(
    f: Callable[[Any], Any], x: Tree, *, level: Level = "quick", generator: torch.Generator | None = None
) -> CheckReport:
    """Check the derivatives of a function at a point: reverse mode, forward mode, second order, and every way to use them.

    First derivatives are compared with Ridders' differences (`hesse.check.differences`) and their error bars: element by
    element where x is small, along random directions, in which every element takes part, beyond. Outputs that are not scalar
    are contracted with a random cotangent. The gradient's derivative is compared with differences of the gradient; the
    gradient itself with the gradients for other cotangents (homogeneous, additive, of other strides), inputs of other strides,
    repeated passes and subsets of leaves and outputs. Kinks raise no alarm: a point beside them is compared.

    Where f runs in float64, differences are taken there, and the gradient in the own dtype is compared with that in float64; a
    module is copied for it. Random numbers that f draws are the same at each call. Complex leaves and outputs follow torch's
    convention: the gradient of a real loss is its steepest ascent.

    Args:
        f: of one tree, to a tensor or a tree of tensors; a module for one.
        x: the point: a tree of tensors, Python floats and constants.
        level: "quick", or "full" for every element of up to 256, more directions, and second order leaf by leaf.
        generator: of directions and cotangents; without one, the same ones each time.

    Returns:
        The report; `.ok` says whether every comparison confirms the derivatives.

    Raises:
        LeafError: no leaf that can be differentiated.
        StructureError: an unknown level, or a function of several arguments, without outputs that can be differentiated, or
            that changes x in place.
        NonFiniteError: a value that is not finite.
        NondeterministicError: two calls with the same random state gave two values.

    Cost: at level quick, 4 evaluations and a forward-mode pass for each element of a small x (two directions in each leaf
        of a large one), and about 40 gradients besides; up to 20 evaluations where f has kinks, 70 where it is wrong.
    """
    if level not in _ELEMENTS:
        raise StructureError("check_derivatives has two levels.", f"level={level!r}", "pass 'quick' or 'full'")
    _require_one_argument(f, x)
    generator = make_generator() if generator is None else generator
    own = Subject(f, x)
    subject, outputs, notes = _chosen(f, x, own)
    precision = Precision(max(EPSILON, subject.epsilon()))
    cotangents = [normal(y.shape, y.dtype, y.device, generator) for y in outputs]
    try:
        first = FirstOrder(subject, cotangents, precision, generator)
    except Exception as error:
        raised = Finding("reverse mode", "", None, None, None, 0.0, f"raises {first_line(error)}")
        return CheckReport(_name(f), level, (), (raised,), tuple(notes), subject.evaluations)
    rows, findings, found_notes = _compared(first, level, generator)
    if subject is not own:
        found = _own_dtype(own, first, cotangents)
        findings += found
        rows.append(Comparison("own dtype against float64", "", 1, 0.0, 0.0, "wrong" if found else "ok"))
    evaluations = own.evaluations + (subject.evaluations if subject is not own else 0)
    notes = list(dict.fromkeys([*notes, *found_notes]))
    return CheckReport(_name(f), level, tuple(rows), tuple(findings), tuple(notes), evaluations)


def _compared(first: FirstOrder, level: Level, generator: torch.Generator) -> tuple[list[Comparison], list[Finding], list[str]]:
    """Everything that is compared in one type: rows, findings and notes."""
    rows: list[Comparison] = []
    findings: list[Finding] = []
    notes: list[str] = []
    leaves, names = first.subject.leaves, first.subject.names
    small = sum(leaf.numel() for leaf in leaves) <= _ELEMENTS[level]
    for leaf in range(len(leaves)):
        slopes = first.compare(leaf, elements=small, directions=_DIRECTIONS[level] + (len(leaves) <= 8))
        rows += first.rows(leaf, slopes)
        findings += first.localize(leaf, slopes)
        if any(slope.kink for slope in slopes):
            at = f" at '{names[leaf]}'" if names[leaf] else ""
            notes.append(f"a kink, or an infinite slope{at}: a point beside it was compared")
    usage, second = Usage(first, generator), SecondOrder(first, generator)
    usage.compare()
    if not any(finding.check == "reverse mode" for finding in findings):
        for _ in range(_DIRECTIONS[level]):
            second.compare(by_leaf=level == "full")
    notes += [f"no forward mode: {first.no_forward}"] if first.no_forward else []
    notes += [f"no second derivative: {second.refused}"] if second.refused else []
    return [*rows, *usage.rows, *second.rows], [*findings, *usage.findings, *second.findings], [*notes, *usage.notes]


def assert_derivatives(
    f: Callable[[Any], Any], x: Tree, *, level: Level = "quick", generator: torch.Generator | None = None
) -> None:
    """Raise unless `check_derivatives` confirms the derivatives of a function.

    Args:
        f, x, level, generator: as for `check_derivatives`.

    Raises:
        WrongDerivativeError: an `AssertionError` with the report.

    Cost: that of `check_derivatives`.
    """
    report = check_derivatives(f, x, level=level, generator=generator)
    if not report.ok:
        raise WrongDerivativeError(f"The derivatives of {report.name} were to be confirmed.", str(report),
                                   "mend the rules that the findings name")  # fmt: skip


def _require_one_argument(f: Callable[[Any], Any], x: Tree) -> None:
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):  # functions written in C have none
        return
    try:
        signature.bind(x)
    except TypeError as error:
        remedy = "pass the arguments as one tree: check_derivatives(lambda t: f(*t), (a, b))"
        raise StructureError("check_derivatives(f, x) calls f(x).", f"{_name(f)}{signature}", remedy) from error


def _chosen(f: Callable[[Any], Any], x: Tree, own: Subject) -> tuple[Subject, Leaves, list[str]]:
    """The function in float64 where it runs there, else as it is; its outputs."""
    outputs = own.outputs(own.leaves)
    for name, y in zip(own.output_names, outputs, strict=True):
        if not y.isfinite().all():
            where = f"output '{name}'" if name else "the output"
            raise NonFiniteError(f"The derivatives of {_name(f)} are checked where its values are finite.",
                                 f"NaN or infinity in {where}", "choose another point")  # fmt: skip
    if any(not torch.equal(a, b) for a, b in zip(outputs, own.outputs(own.leaves), strict=True)):
        raise NondeterministicError(f"Two calls of {_name(f)} with the same random state were compared.",
                                    "two values", "fix the randomness inside the function")  # fmt: skip
    if all(t.dtype in (torch.float64, torch.complex128) for t in (*own.leaves, *outputs)):
        return own, outputs, []
    rounding = _SHADOW * own.epsilon() ** 0.5
    reason = ""
    for promote in (False, True):
        exact = Subject(f, x, torch.float64, promote=promote)
        try:
            shadow = exact.recorded(exact.leaves)[1]
            if all(_alike(a, b, rounding) for a, b in zip(outputs, shadow, strict=True)):
                return exact, [y.detach() for y in shadow], []
        except Exception as error:
            reason = reason or f" ({first_line(error)})"
    return own, outputs, [f"no equal run in float64{reason}: differences in the own dtype, with its error bars"]


def _alike(value: torch.Tensor, shadow: torch.Tensor, rounding: float) -> bool:
    """Whether two runs in different types gave the same value."""
    if value.shape != shadow.shape:
        return False
    return bool((value.detach().to(shadow.dtype) - shadow).abs().max() <= rounding * max(shadow.abs().max().item(), 1e-30))


def _own_dtype(own: Subject, first: FirstOrder, cotangents: Leaves) -> list[Finding]:
    """Compare the gradient in the own dtype with that in float64, unless the point is a kink."""
    epsilon = own.epsilon()
    tolerance = max(30 * epsilon, epsilon**0.5)
    findings: list[Finding] = []
    for point, exact in ((own.leaves, first.gradient), (None, None)):
        if point is None or exact is None:
            point = [b.to(x.dtype) for b, x in zip(first.beside, own.leaves, strict=True)]
            exact = first.subject.gradient([p.to(b.dtype) for p, b in zip(point, first.beside, strict=True)], cotangents)
        gradients = own.gradient(point, [u.to(y.dtype) for u, y in zip(cotangents, own.outputs(point), strict=True)])
        norm = max(e.norm().item() * s for e, s in zip(exact, first.sizes, strict=True))
        findings = [
            Finding("own dtype against float64", name, None, None, None, 0.0, diagnose(g.to(e.dtype), e))
            for name, g, e, s in zip(own.names, gradients, exact, first.sizes, strict=True)
            if not (g.to(e.dtype) - e).norm() * s <= tolerance * max(e.norm().item() * s, 1e-3 * norm)
        ]
        if not findings:
            break
    return findings


def _name(f: Callable[[Any], Any]) -> str:
    return getattr(f, "__name__", type(f).__name__)
