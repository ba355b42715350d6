"""Writes docs/reference/convolution_accuracy.md: thousands of convolutions inverted, against `torch.linalg.pinv`.

python -m tools.convolution_page
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tests.convolutions.bounds import EVERY, Bound, bounded
from tests.convolutions.configurations import COUNT, RANDOM_COUNT, Configuration, configuration, random_configuration
from tests.convolutions.scores import ALLOWED, Score, made_by, score

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "convolution_accuracy.md"
METHODS = ("auto", "boundary", "dense", "circular", "patches")


@dataclass(frozen=True)
class Scored:
    """A configuration with its score."""

    configuration: Configuration
    score: Score

    @property
    def error(self) -> float:
        """In units of the condition times the rounding unit."""
        return self.score.ratio * ALLOWED


def scored(method: str, number: int) -> Scored:
    """One configuration by one method."""
    torch.set_num_threads(1)
    c = configuration(number)
    return Scored(c, score(c, made_by(method)))


def checked(method: str, number: int) -> Bound:
    """One random kernel's error and the bound that its certificate gives."""
    torch.set_num_threads(1)
    return bounded(random_configuration(number), method)


def page(runs: dict[str, list[Scored]], bounds: dict[str, list[Bound]]) -> str:
    """The whole page."""
    boundary = [s for s in runs["boundary"] if s.score.kind == "right"]
    lines = [HEAD.format(count=COUNT, allowed=int(ALLOWED))]
    lines += ["| way | applies to | right | no gap, Penrose equations hold | refused | wrong | error, median | largest |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|--:|"]
    lines += [_of_method(method, run) for method, run in runs.items()]
    columns = "configurations | rank-deficient | condition, up to | error, median | largest |\n|---|--:|--:|--:|--:|--:|"
    lines += [MIDDLE, f"| kernels | {columns}"]
    lines += _by(boundary, lambda c: [c.kernel.replace("_", " ")])
    lines += ["", f"| option | {columns}"]
    lines += _by(boundary, _options)
    lines += [BOUNDED.format(count=RANDOM_COUNT, step=EVERY["boundary"])]
    lines += ["| way | kernels | the bound holds for | refused | bound over error, median | 90 % below |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    lines += [_of_bounds(method, found) for method, found in bounds.items()]
    return "\n".join(lines) + "\n"


def _of_method(method: str, run: list[Scored]) -> str:
    kinds = [s.score.kind for s in run]
    right = [s for s in run if s.score.kind == "right"]
    applies = len(run) - kinds.count("inapplicable")
    refused = kinds.count("refused") + kinds.count("troubled")
    wrong = applies - len(right) - kinds.count("no gap") - refused
    errors = [s.error for s in right] or [0.0]
    numbers = [applies, len(right), kinds.count("no gap"), refused, wrong]
    return f"| `{method}` | {' | '.join(map(str, numbers))} | {statistics.median(errors):.2g} | {max(errors):.2g} |"


def _by(run: list[Scored], names: Callable[[Configuration], Iterable[str]]) -> list[str]:
    groups: dict[str, list[Scored]] = {}
    for s in run:
        for name in names(s.configuration):
            groups.setdefault(name, []).append(s)
    return [
        f"| {name} | {len(found)} | {sum(s.score.deficient for s in found)} | {max(s.score.condition for s in found):.0e}"
        f" | {statistics.median(s.error for s in found):.2g} | {max(s.error for s in found):.2g} |"
        for name, found in sorted(groups.items())
    ]


def _options(c: Configuration) -> list[str]:
    found = {
        f"{len(c.stride)}-D": True,
        f"padding with {c.padding_mode}": any(map(any, c.padding)),
        "no padding": not any(map(any, c.padding)),
        "more after than before, or less": any(before != after for before, after in c.padding),
        "stride": max(c.stride) > 1,
        "dilation": max(c.dilation) > 1,
        "groups": c.groups > 1,
        "even kernels": any(k % 2 == 0 for k in c.weight.shape[2:]),
        "complex": c.weight.is_complex(),
        "weights of 1e-150 to 1e150": not 1e-20 < float(c.weight.abs().max()) < 1e20 and bool(c.weight.any()),
    }
    return [name for name, is_so in found.items() if is_so]


def _of_bounds(method: str, found: list[Bound]) -> str:
    held = [b for b in found if b.kind == "judged" and b.holds]
    ratios = sorted(b.bound / b.error for b in held if b.error > 0)
    refused, judged = (sum(b.kind == kind for b in found) for kind in ("refused", "judged"))
    return (
        f"| `{method}` | {len(found)} | {len(held)} of {judged} | {refused} | {statistics.median(ratios):.2g}"
        f" | {ratios[int(0.9 * len(ratios))]:.2g} |"
    )


HEAD = """# Pseudo-inverses of convolutions, measured

This page is measured: `python -m tools.convolution_page` writes it, from the same {count} drawn configurations that
`make test-all` scores (`make test` takes a sample).

Each is a convolution in one to three dimensions, real or complex, in float64, with drawn sizes, channels, groups, kernels of
1 to 5 cells (even ones too), strides of 1 to 3, dilations of 1 and 2, paddings from none to more than the kernel reaches (also
different before and after) and every padding mode; small enough for the singular values of its matrix. The matrix comes from
PyTorch's own convolution of unit images. The numbers are relative errors of `A⁺ y` and of its adjoint for random inconsistent
`y` against `torch.linalg.pinv` (where that is the less exact one of both: against a solution to 19 digits), in units of
*condition times 2.2e-16*, with the condition number of the part that is kept. Up to {allowed} counts as right. Rank, gap, norm
and condition that the inverse tells of itself have to be right, too.

A cut-off (`rtol`) in the middle of close singular values leaves no well-defined answer. hesse tells so by `gap`; these cases
are scored by the four Penrose equations.

`auto` would take the matrix itself for convolutions as small as these; each way is therefore also made to take all that it
can, with no other way behind it. *Refused* are answers that did not pass their own certificate: `auto` then takes the next way.
"""
MIDDLE = """
## The boundary method, by kernel and by option

The same configurations, each inverted with `method="boundary"`.
"""
BOUNDED = """
## The bound of the error

{count} random kernels (with `boundary` alone, which is slow on images as small as these, one in {step}): every solution's
`forward_error` beside its true error, which is known from a solution to 19 digits.
"""


def main() -> None:
    """Write the page."""
    with ProcessPoolExecutor(2) as pool:
        runs = {method: list(pool.map(scored, [method] * COUNT, range(COUNT), chunksize=50)) for method in METHODS}
        bounds = {
            method: list(pool.map(checked, [method] * RANDOM_COUNT, range(0, RANDOM_COUNT, step), chunksize=50))
            for method, step in EVERY.items()
        }
    PAGE.write_text(page(runs, bounds))


if __name__ == "__main__":
    main()
