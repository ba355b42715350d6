"""`check_derivatives`: every derivative of a function of a tree against differences that share no code with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hesse.check.check_report import CheckReport, Finding, WrongDerivativeError
from hesse.check.differences import EPSILON
from hesse.check.functions.case import Case, Level, first_line
from hesse.check.functions.first import Given
from hesse.check.functions.rounding import CHECK as OWN_TYPE
from hesse.check.functions.rounding import own_type
from hesse.check.functions.shadow import Chosen, choose
from hesse.check.functions.spot import Spot
from hesse.check.functions.subject import Budget, BudgetSpent, Subject
from hesse.check.functions.table import run_checks
from hesse.check.functions.values import random_cotangents
from hesse.check.isolated import isolated as run_isolated
from hesse.check.isolation.news import Running, tell
from hesse.check.reproducer import reproducer
from hesse.check.verdicts import Precision
from hesse.core.errors import NonFiniteError, StructureError
from hesse.core.random import make_generator
from hesse.core.tree import Tree

EVALUATIONS = {"quick": 60, "full": 1000}
UNDECIDED = "choose another point, away from kinks, level='full', or float64"
_ROUNDINGS = {"quick": 2, "full": 4}  # runs in the own type that round otherwise
_ALLOWED = 100.0  # roundings beside which an accuracy that is asked for makes sense


def check_derivatives(
    f: Callable[[Any], Any],
    x: Tree,
    *,
    level: Level = "quick",
    rtol: float | None = None,
    isolated: bool = False,
    generator: torch.Generator | None = None,
) -> CheckReport:
    """Check the derivatives of a function at a point: reverse mode, forward mode, second order, and every way to use them.

    First derivatives are compared with Ridders' differences (`hesse.check.differences`) and their error bars, along random
    directions in which every element takes part, scaled such that leaves and elements with small gradients count like the
    others. Where they disagree the leaf and the element are searched, by bisection where there are many. Outputs that are not
    scalar are contracted with a random cotangent, and others. The gradient's derivative is compared with differences of the
    gradient; the gradient itself with the gradients for other cotangents (homogeneous, additive, of other strides), inputs of
    other strides, repeated and interleaved passes, and subsets of leaves and outputs. Other points are compared too: other
    regions, batch sizes, indices that occur twice; there, what the function refuses is passed over. Kinks raise no alarm: a
    point beside them is compared. Where a leaf and its gradient are symmetric matrices, directions are symmetric too.

    Where f runs in float64, differences are taken there, and the gradient in the own dtype is compared with that in float64,
    with an error bar from runs that round otherwise; a module is copied for it. Random numbers that f draws are the same at
    each call, and in float64 those of the own dtype. Complex leaves and outputs follow torch's convention: the gradient of a
    real loss is its steepest ascent. Of sparse leaves, the values that they store are moved.

    Args:
        f: of one tree, to a tensor or a tree of tensors; a module for one.
        x: the point: a tree of tensors, Python floats and constants.
        level: "quick", at most 60 evaluations of f, or "full", at most 1,000.
        rtol: relative accuracy that is enough; by default, as much as precision allows.
        isolated: whether the check runs in a process of its own, so that a crash or a hang becomes a finding
            (`hesse.check.isolated`).
        generator: of directions and cotangents; without one, the same ones each time.

    Returns:
        The report; `.ok` says whether every comparison confirms the derivatives. A function whose value is another one at
        each call, with the same random state, has a finding that says so.

    Raises:
        LeafError: no leaf that can be differentiated.
        StructureError: an unknown level, an accuracy that the precision does not allow, or a function of several arguments,
            without outputs that can be differentiated, or that changes x in place.
        NonFiniteError: a value that is not finite.

    Cost: at most 60 evaluations at level quick, usually 50, about 60 backward passes and 3 forward-mode passes; at most
        1,000 at level full, usually 300 to 500.
    """
    if level not in EVALUATIONS:
        raise StructureError("check_derivatives has two levels.", f"level={level!r}", "pass 'quick' or 'full'")
    if not callable(f):
        raise StructureError("check_derivatives(f, x) calls f at x.", f"f is a {type(f).__name__}",
                             "pass the function first, then the point")  # fmt: skip
    if torch.is_inference_mode_enabled():
        raise StructureError("check_derivatives(f, x) differentiates f.", "an inference mode, in which nothing is recorded",
                             "call it outside of torch.inference_mode()")  # fmt: skip
    _require_one_argument(f, x)
    if isolated:
        run = partial(check_derivatives, f, x, level=level, rtol=rtol, generator=generator)
        return run_isolated(run, name=name_of(f), level=level)
    return checked(f, x, level=level, rtol=rtol, generator=generator, name=name_of(f))


def checked(
    f: Callable[[Any], Any],
    x: Tree,
    *,
    level: Level,
    name: str,
    rtol: float | None = None,
    generator: torch.Generator | None = None,
    limit: int | None = None,
) -> CheckReport:
    """`check_derivatives` under a name and with a budget of one's own, for checks that contain it.

    Args:
        f, x, level, rtol, generator: as for `check_derivatives`.
        name: of the function, in the report.
        limit: of evaluations; that of the level by default.

    Returns:
        The report.

    Raises:
        LeafError, StructureError, NonFiniteError: as `check_derivatives` does.

    Cost: that of `check_derivatives`.
    """
    generator = make_generator() if generator is None else generator
    budget = Budget(EVALUATIONS[level] if limit is None else limit)
    own = Subject(f, x, budget=budget)
    given = Given(own)
    graph = own.record(own.leaves)
    _require_finite(name, own.output_names, graph.outputs)
    chosen = choose(f, x, own, graph)
    notes = [*_compiled(f), *chosen.notes]
    if chosen.random:
        found = _not_repeatable(chosen, given.changed)
        code = reproducer(f, x, own.names, found, own.place(own.leaves, []))
        return CheckReport(name, level, (), (found,), tuple(notes), budget.spent, code)
    precision = Precision(max(EPSILON, chosen.epsilon), max(_accuracy(rtol, max(EPSILON, chosen.epsilon)), chosen.constants))
    tell(Running("reverse mode"))
    cotangents = random_cotangents([y.detach() for y in chosen.graph.outputs], generator)
    try:
        home = Spot(chosen.subject, chosen.subject.leaves, cotangents, precision, generator, chosen.graph)
    except Exception as error:
        raised = Finding("reverse mode", "", None, None, None, 0.0, f"raises {first_line(error)}")
        place = chosen.subject.place(chosen.subject.leaves, cotangents)
        return CheckReport(name, level, (), (raised,), tuple(notes), budget.spent, reproducer(f, x, own.names, raised, place))
    case = Case(home, level)
    case.notes += notes
    given.judge(case, graph.outputs)
    if chosen.subject is not own:
        _compare_own_type(case, own)
    run_checks(case)
    code = _reproducer(f, x, case)
    findings = tuple(replace(finding, place=None) for finding in case.findings)
    return CheckReport(name, level, tuple(case.rows), findings, tuple(case.notes), budget.spent, code)


def _reproducer(f: Callable[[Any], Any], x: Tree, case: Case) -> str:
    """A program for the first finding; empty without one."""
    if not case.findings:
        return ""
    finding = case.findings[0]
    spot = case.first if finding.check.startswith(("forward", "second order")) else case.home
    return reproducer(f, x, case.names, finding, finding.place or spot.subject.place(spot.point, spot.cotangents))


def _compare_own_type(case: Case, own: Subject) -> None:
    try:
        found = own_type(own, case.home, _ROUNDINGS[case.level])
    except BudgetSpent:
        case.note("the own dtype was not compared")
        return
    except Exception as error:
        found = [Finding(OWN_TYPE, "", None, None, None, 0.0, f"raises {first_line(error)}")]
    case.findings += found
    case.row(OWN_TYPE, "", 1, 0.0, 0.0, "wrong" if found else "ok")


def assert_derivatives(
    f: Callable[[Any], Any],
    x: Tree,
    *,
    level: Level = "quick",
    rtol: float | None = None,
    isolated: bool = False,
    generator: torch.Generator | None = None,
) -> None:
    """Raise unless `check_derivatives` confirms the derivatives of a function.

    Args:
        f, x, level, rtol, isolated, generator: as for `check_derivatives`.

    Raises:
        WrongDerivativeError: an `AssertionError` with the report.

    Cost: that of `check_derivatives`.
    """
    report = check_derivatives(f, x, level=level, rtol=rtol, isolated=isolated, generator=generator)
    if not report.ok:
        remedy = "mend the rules that the findings name" if report.findings else UNDECIDED
        raise WrongDerivativeError(f"The derivatives of {report.name} were to be confirmed.", str(report), remedy)


def name_of(f: Callable[[Any], Any]) -> str:
    """What a function is called; of `apply` of an autograd function, the class."""
    owner = getattr(f, "__self__", None)
    if isinstance(owner, type) and getattr(f, "__name__", "") == "apply":
        return owner.__name__
    return getattr(f, "__name__", type(f).__name__)


def _require_one_argument(f: Callable[[Any], Any], x: Tree) -> None:
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):  # functions written in C have none
        return
    try:
        signature.bind(x)
    except TypeError as error:
        remedy = "pass the arguments as one tree: check_derivatives(lambda t: f(*t), (a, b))"
        raise StructureError("check_derivatives(f, x) calls f(x).", f"{name_of(f)}{signature}", remedy) from error


def _require_finite(name: str, names: list[str], outputs: list[Tensor]) -> None:
    if not any(y.numel() for y in outputs):
        raise StructureError(f"The derivatives of {name} are checked.", "outputs without elements",
                             "choose a point where the function returns numbers")  # fmt: skip
    for output, y in zip(names, outputs, strict=True):
        if not bool(y.isfinite().all()):
            where = f"output '{output}'" if output else "the output"
            raise NonFiniteError(f"The derivatives of {name} are checked where its values are finite.",
                                 f"NaN or infinity in {where}", "choose another point")  # fmt: skip


def _accuracy(rtol: float | None, epsilon: float) -> float:
    if rtol is None:
        return 0.0
    least = _ALLOWED * epsilon**0.75
    if not rtol >= least:
        wider = "" if epsilon <= EPSILON else "compute in float64, "
        raise StructureError(f"An accuracy of rtol={rtol:g} was asked for.",
                             f"differences, of numbers of {epsilon:.1g} relative rounding, resolve {least:.1g} at best",
                             f"ask for rtol={least:.0e} or more, {wider}or leave rtol out")  # fmt: skip
    return rtol


def _not_repeatable(chosen: Chosen, changed: list[str]) -> Finding:
    words = (
        "two calls at one point with the same random state gave two values: no dropout, but a clock, a counter, memory that "
        "was not written, or a generator of its own"
    )
    if any(value != value for value in chosen.random):
        words = "two calls at one point with the same random state gave outputs of two shapes"
    if changed:
        name = f"'{changed[0]}'" if changed[0] else "its input"
        words = f"the function writes to {name} (through .data, or memory shared with numpy), so that a second call differs"
    return Finding("same value twice", "", None, chosen.random[0], chosen.random[1], 0.0, words)


def _compiled(f: Callable[[Any], Any]) -> list[str]:
    if hasattr(f, "_torchdynamo_orig_callable") or type(f).__name__ == "OptimizedModule":
        return [
            "the function is compiled: torch.autograd.functional.hessian of it silently returns zeros (torch 2.13), and "
            "torch.func runs it eagerly"
        ]
    return []
