"""Newton boosting of scikit-learn's trees with a loss of one's own.

Run it with::

    python examples/boosting.py [FIGURE]

Each round fits a tree to ``-g / h`` with weights h, where g and h are the gradient and the Hessian diagonal of the loss by the
predictions (Friedman, Hastie, Tibshirani 2000; Chen, Guestrin 2016); gradient boosting fits it to ``-g``. The loss is written
once, as a function: half the deviance of Gamma-distributed targets whose mean is the exponential of the prediction. The data
are scikit-learn's diabetes patients: the progression of the disease in a year, positive and skewed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.tree import DecisionTreeRegressor
from torch import Tensor

import hesse
from drawing import BLUE, GRAY, ORANGE, destination, panels, save, style

ROUNDS = 60
RATE = 0.1
TEST = 142
Derivatives = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def half_deviance(prediction: Tensor, target: Tensor) -> Tensor:
    """Half the deviance of a Gamma distribution of mean ``exp(prediction)``, summed; 0 where predictions are perfect."""
    return (prediction + target * torch.exp(-prediction) - target.log() - 1).sum()


def gradient_and_curvature(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient and the Hessian diagonal of the loss by the predictions: ``[n]`` each."""
    gradient = torch.func.grad(half_deviance)(prediction, target)
    curvature = hesse.diagonal(hesse.output_hessian(half_deviance, prediction, target))
    return gradient, curvature


def gradient_alone(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient, with ones in the place of the curvature."""
    return torch.func.grad(half_deviance)(prediction, target), torch.ones_like(prediction)


def boost(training: tuple[np.ndarray, Tensor], test: tuple[np.ndarray, Tensor], derivatives: Derivatives) -> list[float]:
    """Half the mean deviance of the test patients after each round."""
    (x, y), (x_test, y_test) = training, test
    prediction, test_prediction = torch.full_like(y, y.mean().log()), torch.full_like(y_test, y.mean().log())
    deviances = []
    for round_number in range(ROUNDS):
        gradient, weight = derivatives(prediction, y)
        tree = DecisionTreeRegressor(max_depth=2, min_samples_leaf=10, random_state=round_number)
        tree.fit(x, (-gradient / weight).numpy(), sample_weight=weight.numpy())
        prediction = prediction + RATE * torch.tensor(tree.predict(x))
        test_prediction = test_prediction + RATE * torch.tensor(tree.predict(x_test))
        deviances.append(half_deviance(test_prediction, y_test).item() / len(y_test))
    return deviances


def reference(training: tuple[np.ndarray, Tensor], test: tuple[np.ndarray, Tensor]) -> list[float]:
    """The same for scikit-learn's own Newton boosting, which has this loss built in (and bins the features)."""
    (x, y), (x_test, y_test) = training, test
    model = HistGradientBoostingRegressor(
        loss="gamma", learning_rate=RATE, max_iter=ROUNDS, max_depth=2, min_samples_leaf=10, early_stopping=False
    ).fit(x, y.numpy())
    staged = (torch.tensor(mean).log() for mean in model.staged_predict(x_test))
    return [half_deviance(prediction, y_test).item() / len(y_test) for prediction in staged]


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """The deviance of the test patients by round."""
    figure, (axes,) = panels((1.0,), height=3.8)
    for (name, curve), color, dashes in zip(curves.items(), (ORANGE, BLUE, GRAY), ("-", "-", "--"), strict=True):
        axes.plot(range(1, ROUNDS + 1), curve, dashes, color=color, label=name)
    style(axes, f"{TEST} test patients", "rounds", "half the Gamma deviance a patient")
    axes.legend(frameon=False)
    save(figure, path)


def main(path: Path) -> dict[str, list[float]]:
    """Boost in three ways, print a table, draw the figure."""
    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    test, training = ((x[chosen], torch.tensor(y[chosen])) for chosen in (order[:TEST], order[TEST:]))
    curves = {
        "gradient boosting": boost(training, test, gradient_alone),
        "Newton boosting": boost(training, test, gradient_and_curvature),
        "scikit-learn, loss='gamma'": reference(training, test),
    }
    print(f"{'half deviance after':28}" + "".join(f"{n:>8}" for n in (5, 10, 20, 40, 60)))
    for name, curve in curves.items():
        print(f"{name:28}" + "".join(f"{curve[n - 1]:8.4f}" for n in (5, 10, 20, 40, 60)))
    draw(curves, path)
    return curves


if __name__ == "__main__":
    main(destination("boosting.png"))
