"""Hard convolutions: nearly singular, of extreme size, in single precision. An answer is right, or says that it is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

import hesse
from hesse.core.errors import HesseError
from tests.convolutions.configurations import COUNT, Configuration, configuration
from tests.convolutions.exact import EPS, spectrum
from tests.convolutions.scores import Score, made_by, relative, score

Sweep = Callable[[Sequence[int], int], list[int]]
KEPT = {"auto": 20, "boundary": 6, "krylov": 2, "dense": 20}
HARD = ("nearly_repeated", "uneven_filters", "smooth", "rank_one", "vanishing", "nearly_singular", "gaussian", "difference")


def _hard(number: int, rtol: float | None = None) -> Configuration:
    return replace(configuration(20_000 + number, kernels=HARD, largest=200), rtol=rtol)


@pytest.mark.parametrize("method", ["auto", "boundary", "krylov", "dense"])
def test_no_answer_is_wrong_without_a_word(method: str, sweep: Sweep) -> None:
    """Trouble and typed errors are allowed here, answers far off are not."""
    scores = [score(_hard(number), made_by(method)) for number in sweep(range(COUNT // 4), KEPT[method])]
    assert not [f"{s.kind} ({s.ratio:.1e}) {s.text}" for s in scores if s.kind in ("WRONG", "crashed") and s.ratio > 10]
    assert not [s.text for s in scores if s.kind == "crashed"]
    if method in ("auto", "dense"):
        assert not [s.text for s in scores if s.kind in ("refused", "troubled")]


def test_every_hard_one_is_answered_by_the_ladder(sweep: Sweep) -> None:
    for number in sweep(range(COUNT // 4), 8):
        c = _hard(number)
        A, M = c.operator(), c.matrix()
        y = c.random(*c.out_shape)
        known = spectrum(M, None)
        solution = hesse.lstsq(A, y, full=True)
        assert solution.forward_error is not None
        if not known.clear:
            continue
        error = relative(solution.value.flatten(), torch.linalg.pinv(M) @ y.flatten())
        assert error <= solution.forward_error + 100 * known.condition * EPS, c


def test_single_precision_is_right_or_warned_of(sweep: Sweep) -> None:
    """With weights that single precision holds exactly; the condition number decides."""
    for number in sweep(range(COUNT // 4), 25):
        c = configuration(30_000 + number, largest=200)
        single = torch.complex64 if c.weight.is_complex() else torch.float32
        if not 1e-20 < float(c.weight.abs().max()) < 1e20:
            continue
        weight = c.weight.to(single)
        c = replace(c, weight=weight.to(c.weight.dtype), rtol=1e-5)
        known = spectrum(c.matrix(), c.rtol)
        if not known.clear:
            continue
        A = replace(c, weight=weight).operator()
        y = c.random(*c.out_shape).to(single)
        plus = torch.linalg.pinv(c.matrix(), rtol=c.rtol)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = hesse.pinv(A, rtol=c.rtol) @ y
        error = relative(found.flatten().to(c.weight.dtype), plus @ y.flatten().to(c.weight.dtype))
        is_warned = any("condition" in str(w.message) for w in caught)
        assert is_warned or error <= 100 * known.condition * 2.0**-23, f"{c}: {error:.1e} at condition {known.condition:.1e}"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    weight[0, 1, 1, 2] = bad
    with pytest.raises(HesseError):
        _ = hesse.pinv(hesse.convolution(weight, (2, 6, 5), padding=1)) @ torch.ones(2, 6, 5, dtype=torch.float64)


def test_scores_tell_wrong_answers() -> None:
    """The measure itself: an inverse that is off by a little more than allowed, and one that cuts off too much."""
    c = configuration(2)
    make = made_by("dense")

    class Off:
        def __init__(self, inverse, factor):
            self.inverse, self.factor = inverse, factor

        def __getattr__(self, name):
            return getattr(self.inverse, name)

        def apply(self, Y, *, adjoint=False):
            found = self.inverse.apply(Y, adjoint=adjoint)
            return found._replace(value=found.value * self.factor)

    def off(by: float) -> Score:
        return score(c, lambda A, rtol: Off(make(A, rtol), 1 + by))  # type: ignore[arg-type, return-value]

    assert off(0.0).kind == "right"
    assert off(1e-6).kind in ("WRONG", "troubled")
    assert off(1e-6).ratio > 1
