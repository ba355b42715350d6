"""The score test of a mean, and standard errors of a logistic regression, beside the textbook.

Run it with::

    python examples/score_test.py [FIGURE]

Left: is the mean sepal length of a species of iris mu0? With U the gradient of the log-likelihood at mu0 and the sigma that
fits best there, and I its information, ``Uᵀ I⁻¹ U`` is about chi-squared with one degree of freedom (Rao 1948). Student's
t-test asks the same. Right: the covariance of a logistic regression's coefficients is the inverse of the information; a cloud
of fits to resampled patients shows whether it is true.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from matplotlib.axes import Axes
from scipy import stats
from sklearn.datasets import load_breast_cancer, load_iris
from torch import Tensor

import hesse
from drawing import BLUE, GRAY, ORANGE, destination, panels, save, style

MEANS = [5.70 + 0.02 * n for n in range(25)]
COLUMNS = {"texture": 1, "smoothness": 4, "symmetry": 8}
RESAMPLED = 300


def score_test(lengths: Tensor, mean: float, kind: Literal["observed", "expected"]) -> float:
    """The p-value of the mean, by the information of this kind."""

    def log_likelihood(theta: dict[str, Tensor], data: Tensor = lengths) -> Tensor:
        return torch.distributions.Normal(theta["mu"], theta["sigma"]).log_prob(data).sum(-1)

    def sample(theta: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return theta["mu"] + theta["sigma"] * torch.randn(len(lengths), dtype=lengths.dtype, generator=generator)

    theta0 = {"mu": lengths.new_tensor(mean), "sigma": (lengths - mean).square().mean().sqrt()}
    score = hesse.hessian_operator(log_likelihood, theta0).gradient
    information = hesse.fisher_information(
        log_likelihood, theta0, kind, sample=sample if kind == "expected" else None, samples=200
    )
    direction = hesse.solve(information.operator, score)
    statistic = sum((score[name] * direction[name]).item() for name in score)
    return float(stats.chi2.sf(statistic, df=1))


@dataclass(frozen=True)
class Logistic:
    """A logistic regression: design matrix with a column of ones, outcomes, and the coefficients that fit best."""

    design: Tensor
    outcome: Tensor
    names: list[str]
    beta: Tensor

    def log_likelihood(self, theta: dict[str, Tensor]) -> Tensor:
        """One number a patient: ``[n]``."""
        logits = self.design @ torch.stack([theta[name] for name in self.names])
        return self.outcome * logits - torch.nn.functional.softplus(logits)

    def information(self, kind: Literal["observed", "empirical"] = "observed") -> hesse.Information:
        """What hesse says."""
        theta = dict(zip(self.names, self.beta, strict=True))
        return hesse.fisher_information(self.log_likelihood, theta, kind)

    def textbook_covariance(self) -> Tensor:
        """``(Xᵀ diag(p (1 - p)) X)⁻¹`` (McCullagh, Nelder 1989)."""
        p = torch.sigmoid(self.design @ self.beta)
        return torch.linalg.inv(self.design.T @ ((p * (1 - p))[:, None] * self.design))


def least_squares_fit(design: Tensor, outcome: Tensor, steps: int = 8) -> Tensor:
    """The coefficients, by re-weighted least squares."""
    beta = torch.zeros(design.shape[1], dtype=design.dtype)
    for _ in range(steps):
        p = torch.sigmoid(design @ beta)
        weight = p * (1 - p)
        beta = beta + torch.linalg.solve(design.T @ (weight[:, None] * design), design.T @ (outcome - p))
    return beta


def malignancy() -> Logistic:
    """569 tumors: is it malignant, given three measurements in units of their standard deviations."""
    cancer = load_breast_cancer()
    x = torch.tensor(cancer.data[:, list(COLUMNS.values())])
    design = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), (x - x.mean(0)) / x.std(0)], dim=1)
    outcome = torch.tensor(1.0 - cancer.target)
    return Logistic(design, outcome, ["intercept", *COLUMNS], least_squares_fit(design, outcome))


def resampled_fits(model: Logistic) -> Tensor:
    """Coefficients fitted to patients drawn with replacement: ``[RESAMPLED, 4]``."""
    generator = torch.Generator().manual_seed(0)
    size = len(model.outcome)
    draws = [torch.randint(size, (size,), generator=generator) for _ in range(RESAMPLED)]
    return torch.stack([least_squares_fit(model.design[n], model.outcome[n]) for n in draws])


def ellipse(axes: Axes, center: Tensor, covariance: Tensor, color: str, dashes: str, label: str) -> None:
    """The region that holds 95 % of a two-dimensional normal distribution."""
    angle = torch.linspace(0, 2 * math.pi, 100, dtype=center.dtype)
    circle = torch.stack([angle.cos(), angle.sin()]) * stats.chi2.ppf(0.95, df=2) ** 0.5
    x, y = center[:, None] + torch.linalg.cholesky(covariance) @ circle
    axes.plot(x, y, dashes, color=color, label=label)


def draw(p_values: dict[str, list[float]], model: Logistic, fits: Tensor, path: Path) -> None:
    """p-values by mean; the cloud of fits with ellipses of hesse's and the textbook's covariance."""
    figure, (left, right) = panels()
    looks = {"observed": (BLUE, "-"), "expected": (ORANGE, "-"), "t-test": (GRAY, "--")}
    for name, (color, dashes) in looks.items():
        left.plot(MEANS, p_values[name], dashes, color=color, label=name if name == "t-test" else f"score test, {name}")
    left.axhline(0.05, color=GRAY, linewidth=0.7, label="p = 0.05")
    style(left, "mean sepal length of versicolor", "mu0 (cm)", "p-value")
    left.legend(frameon=False, fontsize=8.5)
    a, b = model.names.index("smoothness"), model.names.index("symmetry")
    pair = torch.tensor([a, b])
    right.plot(fits[:, a], fits[:, b], ".", color=GRAY, alpha=0.5, markersize=4, label=f"{RESAMPLED} fits to resampled data")
    for covariance, color, dashes, label in (
        (model.information().covariance, BLUE, "-", "95 %: inverse information"),
        (model.textbook_covariance(), ORANGE, "--", "95 %: textbook"),
    ):
        ellipse(right, model.beta[pair], covariance[pair][:, pair], color, dashes, label)
    style(right, "log-odds of malignancy a standard deviation", "coefficient of smoothness", "coefficient of symmetry")
    right.set_ylim(top=1.15)
    right.legend(frameon=False, fontsize=8.5)
    save(figure, path)


def main(path: Path) -> tuple[dict[str, list[float]], Logistic, Tensor]:
    """Test the mean, find the standard errors, print two tables, draw the figure."""
    iris = load_iris()
    lengths = torch.tensor(iris.data[iris.target == 1, 0])
    p_values = {kind: [score_test(lengths, mean, kind) for mean in MEANS] for kind in ("observed", "expected")}
    p_values["t-test"] = [float(stats.ttest_1samp(lengths.numpy(), mean).pvalue) for mean in MEANS]
    print(f"{'mu0':>6}" + "".join(f"{name:>10}" for name in p_values))
    for n in range(0, len(MEANS), 6):
        print(f"{MEANS[n]:6.2f}" + "".join(f"{p[n]:10.4f}" for p in p_values.values()))
    model = malignancy()
    fits, textbook = resampled_fits(model), model.textbook_covariance().diagonal().sqrt()
    errors = {kind: model.information(kind).standard_errors for kind in ("observed", "empirical")}
    print(f"\n{'':12}{'estimate':>9}" + "".join(f"{name:>11}" for name in ("observed", "textbook", "empirical", "resampled")))
    for n, name in enumerate(model.names):
        columns = (errors["observed"][name], textbook[n], errors["empirical"][name], fits[:, n].std())
        print(f"{name:12}{model.beta[n]:9.3f}" + "".join(f"{float(error):11.4f}" for error in columns))
    draw(p_values, model, fits, path)
    return p_values, model, fits


if __name__ == "__main__":
    main(destination("score_test.png"))
