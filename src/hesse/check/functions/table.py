"""Every comparison of `check_derivatives`, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hesse.check.check_report import Finding
from hesse.check.functions import (
    cotangents,
    forward,
    inner,
    inputs,
    lengths,
    passes,
    second_order,
    ties,
    transforms,
    values,
    variants,
)
from hesse.check.functions.case import Case, Level, first_line, has_ties
from hesse.check.functions.subject import BudgetSpent
from hesse.check.functions.variants import data_leaves
from hesse.check.isolation.news import Running, tell

_VALUES = "reverse mode"
_TIES = ("equal elements", "zeros")


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: what is compared, for the note that the budget did not allow it.
        run: the comparison.
        level: the lowest level at which it is made.
        least: evaluations that have to be left for it to be worth a try.
        builds_on_values: whether it says nothing new where first derivatives are wrong.
    """

    name: str
    run: Callable[[Case], None]
    level: Level = "quick"
    least: int = 0
    builds_on_values: bool = False


CHECKS = (
    Check("repeated backward passes", passes.repeated),
    Check("multiples of the cotangent", cotangents.scaled),
    Check("sums of cotangents", cotangents.added),
    Check("cotangents of single outputs", cotangents.alone),
    Check("strides of the cotangent", cotangents.strides),
    Check("strides of cotangents inside", inner.inner_strides),
    Check("inputs and cotangents unchanged", passes.unchanged, least=1),
    Check("another call before the backward pass", passes.interleaved, least=1),
    Check("accumulation over two uses", passes.used_twice, least=2),
    Check(_VALUES, values.reverse, least=4),
    Check("forward mode", forward.forward, least=1, builds_on_values=True),
    Check("second order", second_order.second_order, least=4, builds_on_values=True),
    Check("other cotangents", values.other_cotangents, least=4, builds_on_values=True),
    Check("strides of the inputs", inputs.strides, least=2),
    Check("subsets of leaves that require gradients", inputs.subsets, least=1),
    Check("accumulation into .grad", passes.accumulated, least=2),
    Check("duplicated indices", variants.duplicates, least=5, builds_on_values=True),
    Check("the same tensors with other contents", passes.refilled, least=2),
    Check("other regions", variants.regions, least=5, builds_on_values=True),
    Check("expanded inputs", inputs.expanded_inputs, least=2),
    Check("other batch sizes", variants.batch_sizes, least=5, builds_on_values=True),
    Check("lengths of other axes", lengths.axis_lengths, "full", least=5, builds_on_values=True),
    Check("vmap", transforms.batched, least=3, builds_on_values=True),
    Check("equal elements", ties.equal_elements, least=5, builds_on_values=True),
    Check("zeros", ties.zeros, least=5, builds_on_values=True),
    Check("values without recording", passes.without_gradients, "full", least=1),
    Check("one tensor in two places", inputs.shared, "full", least=2),
    Check("repeated calls", passes.many_times, "full", least=10),
)


def run_checks(case: Case) -> None:
    """Make every comparison that the level asks for and the budget allows; without first derivatives nothing is decided."""
    skipped = []
    for check in _ordered(case):
        if (check.level == "full" and case.level == "quick") or (check.builds_on_values and case.wrong):
            continue
        tell(Running(check.name))
        if not _is_made(case, check):
            skipped.append(check.name)
    if _VALUES in skipped and not any(finding.check == _VALUES for finding in case.findings):
        case.row(_VALUES, "", 0, 0.0, float("inf"), "undecided")
    if skipped:
        case.note(f"the {case.subject.budget.limit} evaluations of level {case.level} did not reach: {', '.join(skipped)}")


def _ordered(case: Case) -> Iterator[Check]:
    """The checks; those of equal elements and zeros right behind the values where data has such elements."""
    moved = (
        [check for check in CHECKS if check.name in _TIES]
        if any(has_ties(case.home.point[i]) for i in data_leaves(case))
        else []
    )
    for check in CHECKS:
        if check not in moved:
            yield check
        if check.name == _VALUES:
            yield from moved


def _is_made(case: Case, check: Check) -> bool:
    """Whether the budget sufficed for a comparison."""
    if case.subject.budget.left < check.least:
        return False
    try:
        check.run(case)
    except BudgetSpent:
        return False
    except Exception as error:
        case.row(check.name, "", 1, float("inf"), 0.0, "wrong")
        case.findings.append(Finding(check.name, "", None, None, None, 0.0, f"raises {first_line(error)}"))
    return True
