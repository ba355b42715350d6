"""Logistic regression of handwritten digits, one sample at a time, with `hesse.grad`.

Run it with::

    python examples/logistic.py [FIGURE] [--epochs N] [--compile off|replay|native]
"""

from __future__ import annotations

import torch
from torch import Tensor

import hesse
from training import Options, Training, batches, load_rows, read_options

RATE = 0.02
Params = dict[str, Tensor]


def predict(params: Params, x: Tensor) -> Tensor:
    """Log-probabilities ``[N, 10]`` of images ``[N, 64]``."""
    return torch.log_softmax(x @ params["W"] + params["b"], 1)


def loss(params: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The mean negative log-likelihood, and the prediction."""
    prediction = predict(params, x)
    return -prediction.gather(1, y[:, None]).mean(), prediction


def main(options: Options) -> Training:
    """Stochastic gradient descent by hand; ends in a confusion matrix and a learning curve."""
    training, test = load_rows()
    generator = torch.Generator().manual_seed(0)
    params = {"W": torch.zeros(64, 10), "b": torch.zeros(10)}
    df, result = hesse.grad(loss, compile=options.compile), Training()
    for _ in range(options.epochs):
        losses = []
        for x, y in batches(training, 1, generator):
            grads, value, _ = df(params, x, y)
            for name, gradient in grads.items():
                params[name] -= RATE * gradient
            losses.append(value)
        result.record(torch.stack(losses).mean().item(), predict(params, test[0]), test[1])
    result.finish(options.path)
    return result


if __name__ == "__main__":
    main(read_options("logistic.png", epochs=12))
