"""`fisher_information`: closed forms, agreement between the kinds where theory says so, what cannot be estimated."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.core.errors import HolomorphyError, NonScalarError, StructureError, SymmetryError
from hesse.derivatives import InformationWarning, fisher_information

from ..autodiff.programs import REAL, by_loops, seeded


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(p: dict[str, Any], data: Tensor) -> Tensor:
    return -0.5 * ((data - p["mu"]) / p["sigma"]) ** 2 - torch.log(p["sigma"]) - 0.5 * math.log(2 * math.pi)


def _poisson(X: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda beta: y * (X @ beta) - (X @ beta).exp()


def _logistic(X: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda beta: y * (X @ beta) - torch.nn.functional.softplus(X @ beta)


def test_normal_distribution_at_its_maximum() -> None:
    data = 1.5 + 2 * seeded(40)
    theta = {"mu": data.mean(), "sigma": data.std(correction=0)}
    found = fisher_information(lambda p: _normal(p, data), theta)
    n, variance = 40, theta["sigma"] ** 2
    torch.testing.assert_close(found.matrix, torch.diag(torch.stack([n / variance, 2 * n / variance])))
    assert found.names == ["mu", "sigma"]
    torch.testing.assert_close(found.covariance, torch.diag(torch.stack([variance / n, variance / 2 / n])))
    assert list(found.standard_errors) == ["mu", "sigma"]
    torch.testing.assert_close(found.standard_errors["mu"], theta["sigma"] / n**0.5)
    torch.testing.assert_close(found.standard_errors["sigma"], theta["sigma"] / (2 * n) ** 0.5)
    torch.testing.assert_close(found.correlation, torch.eye(2, dtype=REAL))
    assert found.condition == pytest.approx(1)
    summed = fisher_information(lambda p: _normal(p, data).sum(), theta)
    torch.testing.assert_close(summed.matrix, found.matrix)


def test_poisson_and_logistic_regression_observed_is_expected() -> None:
    X, beta = seeded(30, 3), 0.5 * seeded(3, seed=1)
    mean, chance = (X @ beta).exp(), torch.sigmoid(X @ beta)
    cases = [
        (_poisson, mean, lambda t, g: torch.poisson((X @ t).exp(), generator=g)),
        (_logistic, chance * (1 - chance), lambda t, g: torch.bernoulli(torch.sigmoid(X @ t), generator=g)),
    ]
    for make, weight, sample in cases:
        expected = X.mT @ (weight[:, None] * X)
        y = sample(beta, _generator())
        torch.testing.assert_close(fisher_information(make(X, y), beta).matrix, expected)
        drawn = fisher_information(lambda t, d, make=make: make(X, d)(t), beta, "expected", sample=sample, samples=3)
        torch.testing.assert_close(drawn.matrix, expected)
        assert drawn.monte_carlo_error is not None
        torch.testing.assert_close(drawn.monte_carlo_error, torch.zeros(3, 3, dtype=REAL), rtol=0, atol=1e-12)
        assert drawn.names == ["theta[0]", "theta[1]", "theta[2]"]


def test_exponential_distribution_and_python_floats() -> None:
    data = torch.empty(25, dtype=REAL).exponential_(2.0, generator=_generator())
    rate = 1 / data.mean()
    found = fisher_information(lambda r: torch.log(r) - r * data, rate)
    assert found.matrix.shape == (1, 1)
    torch.testing.assert_close(found.matrix[0, 0], 25 / rate**2)
    torch.testing.assert_close(found.standard_errors, rate / 5)
    plain = fisher_information(lambda p: 4 * torch.log(p["rate"]) - p["rate"], {"rate": 4.0, "unit": "1/s"})
    assert plain.names == ["rate"]
    assert float(plain.standard_errors["rate"]) == pytest.approx(2.0)
    assert plain.standard_errors["unit"] == "1/s"


def test_trees_of_several_leaves() -> None:
    X, y = seeded(20, 2), seeded(20, seed=3)
    theta = {"beta": 0.1 * seeded(2, seed=4), "scale": [torch.tensor(0.7, dtype=REAL)], "M": 0.1 * seeded(1, 2, seed=5)}

    def values(p: dict[str, Any]) -> Tensor:
        residual = y - X @ p["beta"] - (X**2 @ p["M"].mT)[:, 0]
        return -0.5 * (residual / p["scale"][0]) ** 2 - torch.log(p["scale"][0])

    def flat(t: Tensor) -> Tensor:
        return values({"beta": t[:2], "scale": [t[2]], "M": t[3:].reshape(1, 2)})

    point = torch.cat([theta["beta"], theta["scale"][0][None], theta["M"].flatten()])
    expected = -torch.autograd.functional.hessian(lambda t: flat(t).sum(), point)
    found = fisher_information(values, theta)
    assert found.names == ["beta[0]", "beta[1]", "scale.0", "M[0,0]", "M[0,1]"]
    torch.testing.assert_close(found.matrix, expected)
    scores = by_loops(flat, point)
    torch.testing.assert_close(fisher_information(values, theta, "empirical").matrix, scores.mT @ scores)
    torch.testing.assert_close(found.operator.flat @ point, expected @ point)
    assert found.operator.in_space.names == ("beta", "scale.0", "M")
    scale = expected.diagonal().sqrt()
    scaled = expected / torch.outer(scale, scale)
    assert found.condition == pytest.approx(float(torch.linalg.cond(scaled)))


def test_empirical_tends_to_expected() -> None:
    n, beta = 200_000, torch.tensor([0.4, -0.8], dtype=REAL)
    X = seeded(n, 2)
    y = torch.bernoulli(torch.sigmoid(X @ beta), generator=_generator(1))
    empirical = fisher_information(_logistic(X, y), beta, "empirical").matrix
    expected = fisher_information(_logistic(X, y), beta).matrix
    assert float((empirical - expected).norm() / expected.norm()) < 0.01
    wrong = fisher_information(_logistic(X, y), beta + 1, "empirical").matrix
    assert float((wrong - fisher_information(_logistic(X, y), beta + 1).matrix).norm() / wrong.norm()) > 0.1


def _cauchy(location: Tensor, data: Tensor) -> Tensor:
    return -torch.log1p((data - location) ** 2)


def _draw_cauchy(location: Tensor, generator: torch.Generator) -> Tensor:
    return location + torch.tan(math.pi * (torch.rand(6, generator=generator, dtype=REAL) - 0.5))


@pytest.mark.parametrize("estimator", ["hessian", "score"])
def test_the_monte_carlo_error_is_calibrated(estimator: Any) -> None:
    inside = 0
    for seed in range(60):
        found = fisher_information(
            _cauchy,
            torch.tensor(0.3, dtype=REAL),
            "expected",
            sample=_draw_cauchy,
            samples=40,
            estimator=estimator,
            generator=_generator(seed),
        )
        assert found.monte_carlo_error is not None
        inside += abs(float(found.matrix) - 3.0) <= 2 * float(found.monte_carlo_error)  # 6 observations of information 1/2
    assert 51 <= inside <= 60  # 95 % of 60 are 57, standard deviation 1.7


def test_scores_of_one_number_a_data_set_are_those_of_the_sum() -> None:
    options: Any = {"sample": _draw_cauchy, "samples": 5, "estimator": "score"}
    location = torch.tensor(0.3, dtype=REAL)
    found = fisher_information(lambda t, d: _cauchy(t, d).sum(), location, "expected", **options)
    source, total = torch.Generator().manual_seed(0), 0.0
    for _ in range(5):
        data = _draw_cauchy(location, source)
        total += float((2 * (data - location) / (1 + (data - location) ** 2)).sum()) ** 2 / 5
    options["generator"] = _generator(0)
    again = fisher_information(lambda t, d: _cauchy(t, d).sum(), location, "expected", **options)
    assert float(again.matrix) == pytest.approx(total)
    assert torch.equal(found.matrix, fisher_information(lambda t, d: _cauchy(t, d).sum(), location, "expected",
                                                        **{**options, "generator": None}).matrix)  # fmt: skip


def test_data_sets_share_passes_or_run_alone_with_the_same_result() -> None:
    def reading(t: Tensor, data: Tensor) -> Tensor:
        data.sum().item()  # which torch.func.vmap cannot batch
        return _cauchy(t, data)

    def ragged(t: Tensor, generator: torch.Generator) -> Tensor:
        return torch.ones(int(torch.randint(1, 9, (), generator=generator)), dtype=REAL) * t

    location = torch.tensor(0.3, dtype=REAL)
    for estimator in ("hessian", "score"):
        options: Any = {"sample": _draw_cauchy, "samples": 70, "estimator": estimator}
        batched = fisher_information(_cauchy, location, "expected", **options)
        alone = fisher_information(reading, location, "expected", **options)
        torch.testing.assert_close(batched.matrix, alone.matrix)
        torch.testing.assert_close(batched.monte_carlo_error, alone.monte_carlo_error)
    counts = [len(ragged(location, source)) for source in [_generator(3)] for _ in range(70)]
    found = fisher_information(_cauchy, location, "expected", sample=ragged, samples=70, generator=_generator(3))
    expected = torch.tensor(counts, dtype=REAL) * 2
    torch.testing.assert_close(found.matrix[0, 0], expected.mean())
    assert found.monte_carlo_error is not None
    torch.testing.assert_close(found.monte_carlo_error[0, 0], expected.std() / 70**0.5)


def test_an_expected_information_can_be_differentiated() -> None:
    x = torch.tensor([0.5, 2.0], dtype=REAL, requires_grad=True)
    options: Any = {"sample": lambda b, g: torch.bernoulli(torch.sigmoid(x * b), generator=g), "samples": 3}

    def values(b: Tensor, data: Tensor) -> Tensor:
        return data * x * b - torch.nn.functional.softplus(x * b)

    found = fisher_information(values, torch.tensor(0.8, dtype=REAL), "expected", **options)
    p, z = torch.sigmoid(x.detach() * 0.8), x.detach()
    got = torch.autograd.grad(found.matrix.sum(), x)[0]
    torch.testing.assert_close(got, 2 * z * p * (1 - p) + z**2 * 0.8 * p * (1 - p) * (1 - 2 * p))


def test_drawn_data_are_constant() -> None:
    theta = {
        "mu": torch.tensor(0.2, dtype=REAL, requires_grad=True),
        "sigma": torch.tensor(1.5, dtype=REAL, requires_grad=True),
    }

    def sample(p: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        assert not p["mu"].requires_grad
        return theta["mu"] + theta["sigma"] * torch.randn(8, generator=generator, dtype=REAL)

    found = fisher_information(_normal, theta, "expected", sample=sample, samples=400)
    assert found.monte_carlo_error is not None
    expected = torch.diag(torch.tensor([8 / 1.5**2, 16 / 1.5**2], dtype=REAL))
    assert bool(((found.matrix - expected).abs() <= 4 * found.monte_carlo_error + 1e-12).all())


def test_what_a_sampler_differentiates_stays_its_own() -> None:
    location = torch.tensor(0.3, dtype=REAL, requires_grad=True)

    def sample(t: Tensor, generator: torch.Generator) -> Tensor:
        with torch.enable_grad():  # as a Langevin sampler has to
            return location + torch.randn(3, generator=generator, dtype=REAL)

    found = fisher_information(_cauchy, location, "expected", sample=sample, samples=2).matrix[0, 0]
    data = [sample(location, source).detach() for source in [_generator()] for _ in range(2)]
    residual = torch.stack(data) - location.detach()
    third = (4 * residual * (3 - residual**2) / (1 + residual**2) ** 3).sum() / 2  # derivative of the negative log-likelihood
    torch.testing.assert_close(torch.autograd.grad(found, location)[0], third)


def test_data_sets_share_passes() -> None:
    calls = []

    def counted(t: Tensor, data: Tensor) -> Tensor:
        calls.append(1)
        return _cauchy(t, data)

    fisher_information(counted, torch.tensor(0.3, dtype=REAL), "expected", sample=_draw_cauchy, samples=64)
    assert len(calls) <= 6


def test_a_design_can_be_optimized() -> None:
    x = torch.tensor([0.5, 2.0], dtype=REAL, requires_grad=True)
    beta = torch.tensor(0.8, dtype=REAL)
    found = fisher_information(lambda b: -torch.nn.functional.softplus(x * b), beta)
    got = torch.autograd.grad(found.matrix.sum(), x)[0]
    p = torch.sigmoid(x.detach() * beta)
    torch.testing.assert_close(got, 2 * x.detach() * p * (1 - p) + x.detach() ** 2 * beta * p * (1 - p) * (1 - 2 * p))


def test_directions_without_information_are_named() -> None:
    def ridge(p: dict[str, Tensor]) -> Tensor:
        return -((p["a"] + p["b"] - seeded(5)) ** 2).sum() - 3 * p["c"] ** 2

    theta = {name: torch.tensor(0.1, dtype=REAL) for name in "abcd"}
    with pytest.warns(InformationWarning, match=r"not positive definite.*(a - 1?\.?.* b|d)"):
        found = fisher_information(ridge, theta)
    for attempt in ("standard_errors", "covariance", "correlation"):
        with pytest.raises(SymmetryError, match=r"0\.71 [ab] - 0\.71 [ab]") as caught:
            getattr(found, attempt)
        assert "1 d" in str(caught.value)
        assert " c" not in str(caught.value)
    assert "not positive definite" in repr(found)
    saddle = pytest.warns(InformationWarning, match="no information about 1 theta")
    with saddle:
        fisher_information(lambda t: t**2, torch.tensor(1.0))
    X = torch.stack([seeded(9), seeded(9) + 1e-6 * seeded(9, seed=1)], 1)
    with pytest.warns(InformationWarning, match=r"ill-conditioned .*0.71 theta\[[01]\] - 0.71 theta\[[01]\]"):
        close = fisher_information(lambda t: -0.5 * (X @ t) ** 2, torch.zeros(2, dtype=REAL))
    torch.testing.assert_close(close.covariance, torch.linalg.inv(X.mT @ X), rtol=1e-3, atol=0)
    with pytest.warns(InformationWarning, match="not finite"):
        fisher_information(lambda t: torch.log(t), torch.tensor(0.0))


def test_units_do_not_make_a_problem() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fisher_information(
            lambda t: -((t * torch.tensor([1e-7, 1e7], dtype=REAL)) ** 2).sum(), torch.ones(2, dtype=REAL)
        )
    torch.testing.assert_close(found.standard_errors, torch.tensor([1e7, 1e-7], dtype=REAL) / 2**0.5)


def test_the_table_shows_names_estimates_and_errors() -> None:
    found = fisher_information(lambda p: -(p["mu"] ** 2) * 8 - p["nu"] ** 2 / 2, {"mu": 1.25, "nu": -3.0})
    lines = repr(found).splitlines()
    assert lines[0].startswith("Information(observed, 2 x 2, condition 1)")
    assert lines[1].split() == ["name", "estimate", "standard", "error"]
    assert lines[2].split() == ["mu", "1.25", "0.25"]
    assert lines[3].split() == ["nu", "-3", "1"]
    many = repr(fisher_information(lambda t: -(t**2).sum(), torch.zeros(40, dtype=REAL)))
    assert "... 16 more" in many


def test_refusals() -> None:
    x = seeded(4)
    with pytest.raises(StructureError, match="kind is one of"):
        fisher_information(lambda t: -(t**2).sum(), x, "fisher")  # pyright: ignore[reportArgumentType]
    with pytest.raises(StructureError, match="without sample"):
        fisher_information(lambda t, d: -(t**2).sum(), x, "expected")
    with pytest.raises(StructureError, match="with sample"):
        fisher_information(lambda t: -(t**2).sum(), x, sample=lambda t, g: t)
    with pytest.raises(StructureError, match="at least 2"):
        fisher_information(lambda t, d: -(t**2).sum(), x, "expected", sample=lambda t, g: t, samples=1)
    with pytest.raises(NonScalarError, match="one value an observation"):
        fisher_information(lambda t: -(t**2).sum(), x, "empirical")
    with pytest.raises(NonScalarError, match=r"\(4, 4\)"):
        fisher_information(lambda t: -torch.outer(t, t), x)
    with pytest.raises(StructureError, match=r"\.item"):
        fisher_information(lambda t: (t**2).sum().item(), x)
    with pytest.raises(HolomorphyError):
        fisher_information(lambda t: -(t.abs() ** 2).sum(), x + 0j)
    with pytest.raises(HolomorphyError):
        fisher_information(lambda t: t**2, x + 0j, "empirical")
