"""The laws of linear operators in their order, and one run over them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from hesse.check.check_report import CheckReport, Comparison, Finding
from hesse.check.functions.case import Level
from hesse.check.isolation.news import Running, tell
from hesse.check.operators.effects import fresh_results, modes, repeatable, side_effects
from hesse.check.operators.evidence import Evidence
from hesse.check.operators.foreign import ForeignOperator, as_operator, has_adjoint
from hesse.check.operators.linear import additive, adjoint, homogeneous, transpose, zero
from hesse.check.operators.probe import Probe, modes_kept
from hesse.check.operators.products import batch_axes, blocks, finite, flat, matrix, scipy, spaces, strided
from hesse.check.operators.tags import tags
from hesse.core.errors import StructureError
from hesse.core.random import make_generator, seed_of
from hesse.operators import LinearOperator

_MAP = ("repeatable", "homogeneous", "additive")  # an operator that breaks these has no transpose and no matrix
_CLEAN = ("repeatable", "side effects", "fresh results")  # an operator that breaks these disturbs its own next products
_OWN = frozenset({"transpose", "batch axes", "flat", "scipy", "matrix", "modes", "tags"})  # laws of hesse's own operators


@dataclass(frozen=True)
class Law:
    """A law.

    Attributes:
        run: yields what it compares.
        needs: laws without which it could not hold.
    """

    run: Callable[[Probe], Iterator[Evidence]]
    needs: tuple[str, ...] = ()


LAWS: dict[str, Law] = {
    "spaces": Law(spaces),
    "finite": Law(finite),
    "side effects": Law(side_effects),
    "fresh results": Law(fresh_results),
    "repeatable": Law(repeatable),
    "homogeneous": Law(homogeneous, ("repeatable",)),
    "additive": Law(additive, ("repeatable",)),
    "zero": Law(zero),
    "tags": Law(tags, _MAP),
    "transpose": Law(transpose, _MAP),
    "adjoint": Law(adjoint, (*_MAP, "tags", "zero")),
    "strides": Law(strided, _CLEAN),
    "blocks": Law(blocks, ("repeatable", "fresh results")),
    "batch axes": Law(batch_axes, (*_CLEAN, "blocks")),
    "flat": Law(flat, (*_CLEAN, "blocks", "strides")),
    "scipy": Law(scipy, (*_CLEAN, "blocks", "strides", "flat", "transpose", "adjoint")),
    "matrix": Law(matrix, (*_MAP, "blocks", "adjoint", "transpose")),
    "modes": Law(modes, ("repeatable", "side effects")),
}
OPERATOR_LAWS: tuple[str, ...] = tuple(LAWS)


@dataclass
class Checked:
    """What came out.

    Attributes:
        report: of the check.
        error: the first exception that a law ran into.
    """

    report: CheckReport
    error: Exception | None = None


def checked(A: Any, level: Level, laws: Sequence[str] | None, rtol: float | None, generator: torch.Generator | None) -> Checked:
    """The check, with torch's random state and modes put back behind it.

    Args:
        A, level, laws, rtol, generator: as for `check_operator`.

    Raises:
        StructureError: as there.
    """
    seed = seed_of(generator)
    with torch.random.fork_rng(devices=[]), modes_kept():
        return _run(as_operator(A), level, laws, rtol, seed)


def _run(operator: LinearOperator, level: Level, laws: Sequence[str] | None, rtol: float | None, seed: int) -> Checked:
    chosen = _chosen(operator, level, laws)
    book = _Book(_tolerance(operator, rtol))
    probe = Probe(operator, None, make_generator(), thorough=level == "full")
    if has_adjoint(operator):
        book.attempt("transpose", lambda: setattr(probe, "T", operator.T))
    else:
        book.notes.append("no rmatvec: nothing was compared with the adjoint")
    for name in chosen:
        cause = next((need for need in ("spaces", "finite", *LAWS[name].needs) if need in book.broken and need != name), "")
        if cause and laws is None:
            book.skipped.setdefault(cause, []).append(name)
            continue
        probe.generator = make_generator(zlib.crc32(name.encode(), seed & 0xFFFFFFFF))
        tell(Running(name))
        book.attempt(name, partial(book.weigh, name, LAWS[name].run(probe)))
    notes = (*book.notes, *(f"not compared, since '{cause}' is broken: {', '.join(of)}" for cause, of in book.skipped.items()))
    reproducer = f"hesse.assert_operator(A, laws=[{book.findings[0].check!r}])" if book.findings else ""
    report = CheckReport(name_of(operator), level, tuple(book.rows), tuple(book.findings), notes, probe.products, reproducer)
    return Checked(report, book.error)


@dataclass
class _Book:
    """What has been compared and found."""

    tolerance: float
    rows: list[Comparison] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def broken(self) -> set[str]:
        """The laws found broken."""
        return {finding.check for finding in self.findings}

    def weigh(self, law: str, evidence: Iterator[Evidence]) -> None:
        """Judge a law's evidence up to the first breach, which later ones would repeat."""
        for item in evidence:
            row, finding = item.judge(law, self.tolerance)
            self.rows.append(row)
            tell(row)
            if finding is not None:
                self.findings.append(finding)
                tell(finding)
                return

    def attempt(self, law: str, action: Callable[[], Any]) -> None:
        """Run the user's code; what it raises breaks the law that it was run for."""
        try:
            action()
        except Exception as error:
            text = str(error).splitlines()
            words = f"raises {type(error).__name__}: {text[0] if text else ''}"
            row, finding = Comparison(law, "", 1, float("inf"), 0.0, "wrong"), Finding(law, "", None, None, None, 0.0, words)
            self.rows.append(row)
            self.findings.append(finding)
            self.error = self.error or error
            tell(row, finding)


def name_of(A: LinearOperator) -> str:
    """The first line of an operator's text.

    Args:
        A: the operator.
    """
    return repr(A).partition("\n")[0]


def _chosen(A: LinearOperator, level: str, laws: Sequence[str] | None) -> list[str]:
    if level not in ("quick", "full"):
        raise StructureError("check_operator has two levels.", f"level={level!r}", "pass 'quick' or 'full'")
    unknown = [name for name in laws or () if name not in LAWS]
    if unknown or isinstance(laws, str):
        found = f"laws={laws!r}" if isinstance(laws, str) else repr(unknown[0])
        raise StructureError("check_operator checks laws by name.", found, f"a list of {', '.join(LAWS)}")
    foreign = isinstance(A, ForeignOperator)
    return [name for name in (laws or LAWS) if not (foreign and name in _OWN)]


def _tolerance(A: LinearOperator, rtol: float | None) -> float:
    if rtol is not None:
        return rtol
    dtypes = A.in_space.dtypes + A.out_space.dtypes
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=torch.finfo(torch.float64).eps) ** 0.65
