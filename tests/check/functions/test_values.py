"""Slopes at points that are awkward: kinks near by, borders of domains, few evaluations; what is beyond differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hesse.check import check_derivatives, check_module

from ..planted import draw, planted

WIDE = torch.float64


def has(report, words: str) -> bool:
    return any(words in note for note in report.notes)


def compared(report) -> bool:
    return any(row.check.endswith("reverse mode") and row.verdict == "ok" and row.count for row in report.compared)


def test_kinks_near_by_leave_evaluations_for_a_slope() -> None:
    """A thousand hinges, spread evenly: some lie within every longer step."""
    report = check_derivatives(lambda x: (x.unsqueeze(-1) - torch.linspace(-3, 3, 1000, dtype=x.dtype)).relu(), draw(3, 4))
    assert report.ok, str(report)
    assert compared(report)


@pytest.mark.parametrize("seed", range(4))
def test_a_transformer_in_float32(seed: int) -> None:
    inputs = draw(3, 2, 4, dtype=torch.float32), draw(5, 2, 4, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        report = check_module(nn.Transformer(4, 2, 1, 1, 6), *inputs, generator=torch.Generator().manual_seed(seed))
    assert report.ok, str(report)
    assert compared(report)


def test_a_wrong_slope_among_hinges() -> None:
    hinges = torch.linspace(-3, 3, 1000, dtype=WIDE)
    f = planted(lambda x: (x.unsqueeze(-1) - hinges).relu().sum(-1), lambda g, x: 1.01 * g * (x.unsqueeze(-1) > hinges).sum(-1))
    report = check_derivatives(f, draw(3, 4))
    assert report.findings[0].check == "reverse mode"
    assert "factor 1.010" in report.findings[0].diagnosis


BORDERS = {
    "at one": torch.tensor([[0.3, 1 - 1e-7], [0.8, 0.5]], dtype=WIDE),
    "at zero": torch.tensor([[1e-6, 0.4], [1 - 1e-5, 0.5]], dtype=WIDE),
    "inside": torch.tensor([[0.2, 0.4], [0.7, 0.5]], dtype=WIDE),
}


@pytest.mark.parametrize("name", BORDERS)
def test_a_target_at_the_border_of_what_a_loss_takes(name: str) -> None:
    """`binary_cross_entropy` raises on targets outside of [0, 1]."""
    y = torch.tensor([[0.6, 0.2], [0.3, 0.9]], dtype=WIDE)
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        report = check_derivatives(lambda t: F.binary_cross_entropy(*t), (y, BORDERS[name]), generator=g)
        assert report.ok, str(report)
        assert compared(report)


@pytest.mark.parametrize("name", BORDERS)
def test_a_wrong_slope_at_the_border(name: str) -> None:
    def bounded(x: Tensor) -> Tensor:
        if bool(((x < 0) | (x > 1)).any()):
            raise ValueError("x lies outside of [0, 1]")
        return x.square()

    report = check_derivatives(planted(bounded, lambda g, x: 2.1 * g * x), BORDERS[name])
    assert "factor 1.050" in report.findings[0].diagnosis


def test_a_function_that_raises_anywhere_later_is_wrong() -> None:
    calls = []

    def tired(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 8:
            raise RuntimeError("the buffer is gone")
        return x.sin()

    report = check_derivatives(tired, draw(3, 4))
    assert report.verdict == "wrong"
    assert any("the buffer is gone" in finding.diagnosis for finding in report.findings)


def test_a_row_of_zeros_that_is_normalized() -> None:
    """Within 1e-12 of zero the slope is 1e12; for every step it jumps."""
    x = torch.cat([torch.zeros(1, 4), draw(2, 4, dtype=torch.float32)])
    assert check_derivatives(lambda x: F.normalize(x, dim=-1), x).ok


def test_a_norm_of_zero() -> None:
    assert check_derivatives(lambda x: x.norm(), torch.zeros(4)).ok


@pytest.mark.parametrize("f", [lambda x: x.prod(), torch.linalg.det])
def test_polynomials_of_slope_zero(f) -> None:
    x = torch.tensor([1.0, 0.0, 2.0, 0.0, 3.0], dtype=WIDE)
    assert check_derivatives(f, x if f is not torch.linalg.det else torch.diag(x)).ok


def test_corners_of_a_grid() -> None:
    """Sampling at the grid's own points: each is a kink, where rounding picks one side or the other."""
    theta = torch.eye(2, 3, dtype=torch.float32)[None]
    images = draw(1, 2, 4, 5, dtype=torch.float32)

    def warp(t):
        return F.grid_sample(t[0], F.affine_grid(t[1], (1, 2, 4, 5), align_corners=True), align_corners=True)

    report = check_derivatives(warp, (images, theta))
    assert report.ok, str(report)
    assert compared(report)


SYMMETRIC = {
    "cholesky": torch.linalg.cholesky, "eigvalsh": torch.linalg.eigvalsh, "eigh": lambda a: torch.linalg.eigh(a)[0].square(),
    "lower": lambda a: torch.linalg.cholesky(a, upper=True),
}  # fmt: skip


@pytest.mark.parametrize("name", SYMMETRIC)
def test_functions_of_symmetric_matrices(name: str) -> None:
    x = draw(4, 4, seed=2)
    a = x @ x.mT + 0.5 * torch.eye(4, dtype=WIDE)
    report = check_derivatives(SYMMETRIC[name], (a + a.mT) / 2)
    assert report.ok, str(report)
    assert has(report, "symmetric directions")


@pytest.mark.parametrize("factor", [1.01, 0.0])
def test_wrong_gradients_at_symmetric_matrices(factor: float) -> None:
    a, b = draw(4, 4, seed=2), draw(4, 4, seed=3)
    f = planted(lambda s: (b @ s @ b.mT).square().sum(), lambda g, s: g * factor * 2 * b.mT @ b @ s @ b.mT @ b)
    report = check_derivatives(f, a + a.mT)
    assert report.verdict == "wrong"


def test_distributions_are_beyond_differences() -> None:
    report = check_derivatives(lambda t: torch.distributions.Gamma(t.exp(), torch.ones_like(t)).rsample(), draw(4))
    assert report.verdict == "undecided"
    assert has(report, "StandardGamma")
    report = check_derivatives(lambda t: torch.distributions.Dirichlet(t.exp()).rsample(), draw(2, 3))
    assert report.verdict == "undecided"


def test_functions_that_differentiate_themselves() -> None:
    def energy(t):
        x, w = t
        u = torch.tanh(x @ w)
        return torch.autograd.grad(u.sum(), x, create_graph=True)[0].square().sum()

    for level in ("quick", "full"):
        report = check_derivatives(energy, (draw(4, 4), draw(4, 4, seed=1)), level=level)
        assert report.ok, str(report)
    assert has(report, "differentiates")


def test_reentrant_checkpoints() -> None:
    w = draw(4, 3, seed=1)
    report = check_derivatives(lambda x: checkpoint(lambda t: (t @ w).tanh(), x, use_reentrant=True), draw(2, 4))
    assert report.ok, str(report)
    wrong = planted(lambda t: t.tanh(), lambda g, t: 1.1 * g / t.cosh().square())
    report = check_derivatives(lambda x: checkpoint(wrong, x, use_reentrant=True), draw(2, 4))
    assert report.verdict == "wrong"


def test_sums_in_another_order_are_no_randomness() -> None:
    calls = []

    def parallel(x: Tensor) -> Tensor:
        calls.append(1)
        return x.sin() * (1 + 2**-52 * (len(calls) % 3))

    assert check_derivatives(parallel, draw(3, 4)).ok
    calls.clear()
    report = check_derivatives(lambda x: parallel(x) + 1e-12 * len(calls), draw(3, 4))
    assert report.findings[0].check == "same value twice"


def test_saturated_numbers_elsewhere() -> None:
    """At 100 times the point the slope is 1e-22, and the gradient zero, the rounding of sigmoid(50) - 1."""
    x, y = torch.tensor([80.0, -80.0, 0.5], dtype=WIDE), torch.tensor([1.0, 0.0, 1.0], dtype=WIDE)
    report = check_derivatives(lambda x: F.binary_cross_entropy_with_logits(x, y), x, level="full")
    assert report.ok, str(report)


@pytest.mark.parametrize("seed", range(4))
def test_backward_passes_that_choose_their_steps(seed: int) -> None:
    """That of the matrix exponential is linear in the cotangent to 1e-12 only."""
    report = check_derivatives(torch.linalg.matrix_exp, draw(3, 3, seed=seed), generator=torch.Generator().manual_seed(seed))
    assert report.ok, str(report)


def under_autocast(x: Tensor) -> Tensor:
    w = draw(5, 3, seed=3, dtype=torch.float32).to(x.dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (x @ w).tanh().float()


@pytest.mark.parametrize("f", [under_autocast, lambda x: (x.half() * x.half()).float().tanh()])
def test_shorter_types_inside(f) -> None:
    for seed in range(4):
        report = check_derivatives(f, draw(4, 5, seed=seed, dtype=torch.float32))
        assert report.ok, str(report)


class Cubic(torch.autograd.Function):
    """(5 x^3 - 3 x) / 2."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 0.5 * (5 * x**3 - 3 * x)

    @staticmethod
    def backward(ctx, g):
        return g * 1.5 * (5 * ctx.saved_tensors[0] ** 2 - 1)


def fit(t: dict[str, Tensor]) -> Tensor:
    x = torch.linspace(-math.pi, math.pi, 200, dtype=t["a"].dtype)
    return (t["a"] + t["b"] * Cubic.apply(t["c"] + t["d"] * x) - x.sin()).pow(2).sum()


@pytest.mark.parametrize("seed", range(4))
def test_a_gradient_whose_terms_cancel_to_rounding(seed: int) -> None:
    """By symmetry the sine's fit has no slope in c, at c = 0 and a = 0."""
    start = {name: torch.tensor(value) for name, value in (("a", 0.0), ("b", -1.0), ("c", 0.0), ("d", 0.3))}
    report = check_derivatives(fit, start, generator=torch.Generator().manual_seed(seed))
    assert report.ok, str(report)


CONSTANTS = {
    "cosine": lambda x: F.cosine_similarity(x, x.clone()),
    "quotient of squares": lambda x: x.square().sum(-1) / x.norm(dim=-1) ** 2,
    "shares": lambda x: x.softmax(-1).sum(-1),
    "sine and cosine": lambda x: x.sin() ** 2 + x.cos() ** 2,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_constant_whose_gradient_is_rounding(name: str, seed: int, level) -> None:
    x = draw(3, 4, seed=seed, dtype=torch.float32)
    report = check_derivatives(CONSTANTS[name], x, level=level, generator=torch.Generator().manual_seed(seed))
    assert report.ok, str(report)


def likelihood(t: Tensor) -> Tensor:
    x = torch.arange(5, dtype=t.dtype)
    covariance = (-(x[:, None] - x).square() / t[0].exp()).exp() + t[1].exp() * torch.eye(5, dtype=t.dtype)
    half = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(half, x.sin()[:, None], upper=False)
    return -0.5 * white.square().sum() - half.diagonal().log().sum()


@pytest.mark.parametrize("seed", [1, 2, 4, 7])
def test_far_points_where_a_matrix_is_singular_to_rounding(seed: int) -> None:
    x = torch.tensor([1.54, -0.293])
    report = check_derivatives(likelihood, x, level="full", generator=torch.Generator().manual_seed(seed))
    assert report.ok, str(report)
