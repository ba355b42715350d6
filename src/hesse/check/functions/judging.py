"""What slopes say together: a verdict, findings where they are wrong, and rows for each leaf."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch

from hesse.check.check_report import Verdict
from hesse.check.functions.case import Case
from hesse.check.functions.localize import Localizer
from hesse.check.functions.spot import Slope, Spot
from hesse.check.functions.subject import BudgetSpent

_SEVERITY = {"ok": 0, "undecided": 1, "wrong": 2}
_STEEP = 1e12  # slopes elsewhere this large beside those at home are rounding of numbers that cancel, or nearly singular
_NOTHING = 1e-13  # slopes elsewhere this small beside those at home are rounding of saturated numbers


def judge(case: Case, check: str, slopes: list[Slope], spot: Spot, words: str = "") -> Verdict:
    """Note what slopes say; a disagreement counts where another direction of the same kind shows it too.

    Args:
        case: where to note it.
        check: what is compared.
        slopes: along directions.
        spot: where.
        words: what to add to a finding.

    Returns:
        The verdict.

    Cost: 4 evaluations for a second look at a disagreement, and what is left to find the elements.
    """
    if not slopes:
        return "ok"
    wrong = [s for s in slopes if s.verdict == "wrong" and not s.kink]
    verdicts: list[Verdict] = ["undecided" if s.kink else s.verdict for s in slopes]
    verdict = max(verdicts, key=lambda v: _SEVERITY[v])
    if wrong and not confirmed(case, spot, wrong):
        verdict = "undecided" if spot is case.first else "ok"
    if verdict != "wrong":
        _rows(case, check, slopes, verdict)
        return verdict
    case.wrong = True
    found = Localizer(case, spot, check, words).findings(max(wrong, key=lambda s: s.error))
    _rows(case, check, slopes, verdict, {finding.leaf for finding in found})
    case.findings += found
    return verdict


def confirmed(case: Case, spot: Spot, wrong: list[Slope]) -> bool:
    """Whether a disagreement is more than rounding, stays for smaller steps, and is there along another direction too.

    Cost: 1 evaluation to measure rounding, 2 for a smaller step, 4 for another direction.
    """
    if not math.isfinite(wrong[0].reverse):
        return True
    if spot is not case.home:
        least = _NOTHING * case.home.steepest
        if spot.is_flat or 0 < _STEEP * case.home.steepest < spot.steepest or all(abs(s.defect) <= least for s in wrong):
            return False
        case.measure(spot)
    try:
        if not any(abs(s.defect) > spot.rounded(s.direction) + 3 * s.error_bar and spot.is_confirmed(s) for s in wrong):
            return False
        return len(wrong) > 1 or _is_wrong_again(spot, wrong[0])
    except BudgetSpent:  # the evidence there is has to do
        return abs(wrong[0].defect) > 30 * wrong[0].error_bar + spot.rounded(wrong[0].direction)


def _is_wrong_again(spot: Spot, wrong: Slope) -> bool:
    again = [None if v is None else spot.kept(i, v * torch.randn(v.shape, generator=spot.generator, dtype=torch.float64).to(v))
             for i, v in enumerate(wrong.direction)]  # fmt: skip
    return spot.slope(again).verdict == "wrong"


def _rows(case: Case, check: str, slopes: list[Slope], verdict: Verdict, blamed: Collection[str] = ()) -> None:
    """One row a leaf: slopes in all leaves count for each of them, unless other leaves are to blame for what is wrong."""
    for leaf, name in enumerate(case.names):
        own = [s for s in slopes if s.direction[leaf] is not None]
        if blamed and "" not in blamed and name not in blamed:
            own = [s for s in own if sum(v is not None for v in s.direction) == 1]
        if not own:
            continue
        worst = max(own, key=lambda s: (_SEVERITY["undecided" if s.kink else s.verdict], s.error))
        case.row(check, name, len(own), worst.error, worst.error_bar / worst.scale,
                 verdict if worst.verdict == "wrong" or worst.kink else worst.verdict)  # fmt: skip
