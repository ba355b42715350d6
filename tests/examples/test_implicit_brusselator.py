"""The steps are of second order, agree with SciPy's integrator, and take the Jacobian that is there."""

from __future__ import annotations

import pytest
import torch


def test_both_ways_take_the_same_jacobian_and_solve_the_same(example) -> None:
    module = example("implicit_brusselator")
    rate, y = module.brusselator(4), module.start(4)
    rows = torch.stack([torch.autograd.grad(rate(x := y.clone().requires_grad_())[k], x)[0] for k in range(len(y))])
    b = torch.randn(len(y), dtype=torch.float64)
    expected = torch.linalg.solve(torch.eye(len(y), dtype=torch.float64) - 0.3 * rows, b)
    for way in (module.SparseWay(rate, y, module.Work()), module.DenseWay(rate, y, module.Work())):
        J = way.linearize(y)
        torch.testing.assert_close(torch.as_tensor(J if isinstance(J, torch.Tensor) else J.toarray()), rows)
        torch.testing.assert_close(way.factorize(J, 0.3)(b), expected, rtol=1e-8, atol=1e-10)


def test_the_reaction_rests_at_its_equilibrium(example) -> None:
    module = example("implicit_brusselator")
    y = torch.tensor([module.A, module.B / module.A], dtype=torch.float64).repeat_interleave(9)
    assert module.brusselator(3)(y).abs().max() < 1e-12


def test_halving_the_step_quarters_the_error_and_the_estimate_is_of_third_order(example, monkeypatch) -> None:
    module = example("implicit_brusselator")
    monkeypatch.setattr(module, "TOLERANCE", 1e-9)
    monkeypatch.setattr(module, "SPACING", 4.0)  # smooth enough for the order to be seen
    rate, work = module.brusselator(3), module.Work()
    way = module.DenseWay(rate, module.start(3), work)

    def solution(steps: int) -> tuple[torch.Tensor, float]:
        y, h, first = module.start(3), 0.2 / steps, 0.0
        for k in range(steps):
            y, error = module.trbdf2(rate, y, h, way.factorize(way.linearize(y), module.D * h), work)
            first = first if k else error.norm().item()
        return y, first

    (coarse, _), (middle, rough), (fine, fair) = (solution(steps) for steps in (16, 32, 64))
    assert ((coarse - middle).norm() / (middle - fine).norm()).item() == pytest.approx(4, rel=0.1)
    assert rough / fair == pytest.approx(8, rel=0.15)


def test_it_agrees_with_scipy(example) -> None:
    assert example("implicit_brusselator").difference_from_scipy(side=5, end=0.5) < 5e-3


def test_a_pattern_grows_and_is_drawn(example, tmp_path) -> None:
    module = example("implicit_brusselator")
    result = module.main(tmp_path / "figure.png", 8, (4, 6), (4,))
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    first, last = (state.reshape(2, -1)[0].std().item() for state in (result.solution.states[0], result.solution.states[-1]))
    assert last > 2 * first and result.solution.ends[-1] == pytest.approx(module.TIMES[-1])
    assert result.work.calls["pattern and colors"] == 1 and result.work.calls["Jacobian"] == len(result.solution.sizes)
    assert result.sparse_steps.keys() == {32, 72} and result.dense_steps.keys() == {32}
