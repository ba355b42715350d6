"""The Laplace approximation of the marginal likelihood, which chooses a prior precision without a validation set.

Run it with::

    python examples/laplace_marginal_likelihood.py [FIGURE]

With a Gaussian prior of precision p on all D parameters, w the most probable ones and G the Gauss-Newton matrix of the
negative log-likelihood there (MacKay 1992; Immer et al. 2021)::

    log p(data) = log p(data | w) - p |w|² / 2 + D log(p) / 2 - logdet(G + p I) / 2

The determinant is taken of G itself and of its approximations: Kronecker factors, with corrected eigenvalues, diagonal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import hesse
from digits import accuracy, load_images
from drawing import BLUE, GRAY, GREEN, INK, ORANGE, destination, panels, save, style

TRAINING_IMAGES = 300
PRECISIONS = [10 ** (exponent / 2) for exponent in range(3, -6, -1)]
TOTAL = nn.CrossEntropyLoss(reduction="sum")
Batch = tuple[Tensor, Tensor]


def half_log_determinants(model: nn.Module, data: Batch, precision: float) -> dict[str, float]:
    """Half of ``logdet(G + precision I)`` by four approximations of G, from the best to the cheapest."""
    G = hesse.ggn(model, TOTAL, data)
    diagonal = hesse.operators.Diagonal(G.in_space.unravel(hesse.diagonal(G)))
    prior = precision * hesse.identity(G.in_space)
    return {
        "exact": float(hesse.logdet(G + prior, method="exact")) / 2,
        "EKFAC": hesse.ekfac(model, TOTAL, data, kind="ggn").damped(precision).logdet() / 2,
        "KFAC": hesse.kfac(model, TOTAL, data, kind="ggn").damped(precision).logdet() / 2,
        "diagonal": float(hesse.logdet(diagonal + prior)) / 2,
    }


def log_joint(model: nn.Module, data: Batch, precision: float) -> Tensor:
    """``log p(data, w)`` up to a constant: the log-likelihood and the logarithm of the prior."""
    parameters = list(model.parameters())
    size, squares = sum(p.numel() for p in parameters), sum(p.square().sum() for p in parameters)
    return -TOTAL(model(data[0]), data[1]) - precision * squares / 2 + size * math.log(precision) / 2


def fit(model: nn.Module, data: Batch, precision: float) -> None:
    """Find the most probable parameters, from where they are."""
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, history_size=50, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = -log_joint(model, data, precision)
        value.backward()
        return value

    optimizer.step(objective)


@dataclass(frozen=True)
class Result:
    """The evidence by approximation, and what the test images say, one number a precision."""

    evidence: dict[str, list[float]]
    test_log_likelihood: list[float]
    test_accuracy: list[float]

    def chosen(self, approximation: str) -> int:
        """The index of the precision of largest evidence."""
        curve = self.evidence[approximation]
        return curve.index(max(curve))


def measure(training: Batch, test: Batch) -> Result:
    """Fit and evaluate at every precision, from the strongest prior to the weakest."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh(), nn.Linear(10, 10)).double()
    result = Result({}, [], [])
    for precision in PRECISIONS:
        fit(model, training, precision)
        with torch.no_grad():
            joint = log_joint(model, training, precision).item()
            result.test_log_likelihood.append(-TOTAL(model(test[0]), test[1]).item() / len(test[1]))
        result.test_accuracy.append(accuracy(model, *test))
        for name, half in half_log_determinants(model, training, precision).items():
            result.evidence.setdefault(name, []).append(joint - half)
    return result


def draw(result: Result, path: Path) -> None:
    """The evidence curves with their maxima, and the likelihood of the test images at the chosen precisions."""
    figure, (left, right) = panels()
    right.plot(PRECISIONS, result.test_log_likelihood, color=INK)
    for (name, curve), color in zip(result.evidence.items(), (BLUE, GREEN, ORANGE, GRAY), strict=True):
        best, dashes = result.chosen(name), "--" if name == "EKFAC" else "-"
        left.plot(PRECISIONS, curve, dashes, color=color, label=name)
        left.plot(PRECISIONS[best], curve[best], "o", color=color)
        if name != "EKFAC":
            right.plot(PRECISIONS[best], result.test_log_likelihood[best], "o", color=color, markersize=8)
    for axes, title, y in (
        (left, "log marginal likelihood", "nats"),
        (right, "360 test images, at the chosen precisions", "log-likelihood an image"),
    ):
        style(axes, title, "prior precision", y)
        axes.set_xscale("log")
    right.set_ylim(bottom=-0.6)
    left.legend(frameon=False)
    save(figure, path)


def main(path: Path) -> Result:
    """Choose the precision, print a table, draw the figure."""
    (images, labels), (test_images, test_labels) = load_images()
    training = (images[:TRAINING_IMAGES].double(), labels[:TRAINING_IMAGES])
    result = measure(training, (test_images.double(), test_labels))
    print(f"{'precision':>9}" + "".join(f"{name:>10}" for name in result.evidence) + f"{'test':>10}{'accuracy':>10}")
    for n, precision in enumerate(PRECISIONS):
        curves = "".join(
            f"{curve[n]:9.1f}{'*' if result.chosen(name) == n else ' '}" for name, curve in result.evidence.items()
        )
        print(f"{precision:9.3g}{curves}{result.test_log_likelihood[n]:10.3f}{result.test_accuracy[n]:10.1%}")
    draw(result, path)
    return result


if __name__ == "__main__":
    main(destination("laplace_marginal_likelihood.png"))
