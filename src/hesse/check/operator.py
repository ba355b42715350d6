"""`check_operator`: every law of a linear operator, with random vectors, and element by element where it is small."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from hesse.check.check_report import CheckReport
from hesse.check.functions.case import Level
from hesse.check.isolated import isolated as run_isolated
from hesse.check.operators.foreign import as_operator
from hesse.check.operators.run import Checked, checked, name_of
from hesse.core.errors import HesseError


class BrokenLawError(HesseError, AssertionError):
    """An operator breaks a law; `laws` names all that are broken, and the text is the report."""

    def __init__(self, asked: str, found: str = "", remedy: str = "", laws: tuple[str, ...] = ()) -> None:
        super().__init__(asked, found, remedy)
        self.laws = laws

    def __reduce__(self) -> Any:
        return type(self), (self.asked, self.found, self.remedy, self.laws)


def check_operator(
    A: Any,
    *,
    level: Level = "quick",
    laws: Sequence[str] | None = None,
    rtol: float | None = None,
    isolated: bool = False,
    generator: torch.Generator | None = None,
) -> CheckReport:
    """Check the laws that every linear operator keeps.

    It is homogeneous (for negative, large, small and complex factors) and additive, and maps zero to zero; ``A.T`` is its
    transpose, ``A.H`` its adjoint, ``A.T.T`` itself; products are finite; blocks, batch axes, flat tensors, SciPy's view and
    `hesse.dense` give what single vectors give; so do vectors of other strides, expanded ones, and other modes of torch; the
    tags that it claims hold; paths, shapes, dtypes and devices are those of its spaces; a product leaves nothing behind, and
    its result stays what it is.

    Where a law is broken, laws that could not hold without it are not compared, so that the report names the cause alone.

    Args:
        A: a `hesse.LinearOperator`, or one of SciPy's, of which the laws are asked that do not speak of trees and tags.
        level: "quick", or "full" for the matrix element by element up to dimension 256 (32 at quick), more vectors, sizes of
            blocks and repetitions, another default dtype, and every law for the transpose as an operator of its own.
        laws: names of the only laws to check; all where None.
        rtol: relative tolerance; by default ``eps ** 0.65`` of the coarsest leaf, 7e-11 in float64 and 3e-5 in float32.
        isolated: whether the check runs in a process of its own, so that a crash or a hang becomes a finding
            (`hesse.check.isolated`).
        generator: of the vectors; without one, the same ones each time. Each law draws its own.

    Returns:
        The report; every comparison and finding carries the name of its law; `evaluations` counts products.

    Raises:
        StructureError: no linear operator, or an unknown level or law.

    Cost: at level quick about 110 products, and up to 70 more where the dimension is at most 32; at level full about 450, and
        up to 1,000 more where the dimension is at most 256.
    """
    if isolated:
        run = partial(check_operator, A, level=level, laws=laws, rtol=rtol, generator=generator)
        return run_isolated(run, name=name_of(as_operator(A)), level=level)
    return checked(A, level, laws, rtol, generator).report


def assert_operator(
    A: Any,
    *,
    level: Level = "quick",
    laws: Sequence[str] | None = None,
    rtol: float | None = None,
    isolated: bool = False,
    generator: torch.Generator | None = None,
) -> None:
    """Raise unless `check_operator` finds every law kept.

    Args:
        A, level, laws, rtol, isolated, generator: as for `check_operator`.

    Raises:
        BrokenLawError: an `AssertionError` with the report; its `laws` names the laws that are broken.

    Cost: that of `check_operator`.
    """
    if isolated:
        run = Checked(check_operator(A, level=level, laws=laws, rtol=rtol, isolated=True, generator=generator))
    else:
        run = checked(A, level, laws, rtol, generator)
    if not run.report.ok:
        broken = tuple(dict.fromkeys(finding.check for finding in run.report.findings))
        asked = f"{len(broken)} law{'s are' if len(broken) > 1 else ' is'} broken by {run.report.name}: {', '.join(broken)}."
        raise BrokenLawError(asked, str(run.report), "mend what the findings name", broken) from run.error
