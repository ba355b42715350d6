"""A network of three layers on handwritten digits, its parameters a nested structure, with `hesse.grad`.

Run it with::

    python examples/mlp.py [FIGURE] [--epochs N] [--compile off|replay|native]
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

import hesse
from training import Options, Training, batches, load_rows, read_options

RATE, BATCH, SIZES = 0.3, 16, (64, 50, 50, 10)
Params = list[dict[str, Tensor]]


def initial(generator: torch.Generator) -> Params:
    """Weights and biases of each layer, uniform in one over the square root of its inputs."""
    return [
        {name: (2 * torch.rand(shape, generator=generator) - 1) * m**-0.5 for name, shape in {"W": (m, n), "b": (n,)}.items()}
        for m, n in pairwise(SIZES)
    ]


def predict(params: Params, x: Tensor) -> Tensor:
    """Log-probabilities ``[N, 10]`` of images ``[N, 64]``: tanh after every layer but the last."""
    *hidden, last = params
    for layer in hidden:
        x = torch.tanh(x @ layer["W"] + layer["b"])
    return torch.log_softmax(x @ last["W"] + last["b"], 1)


def loss(params: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The mean negative log-likelihood, and the prediction."""
    prediction = predict(params, x)
    return torch.nn.functional.nll_loss(prediction, y), prediction


def main(options: Options) -> Training:
    """Stochastic gradient descent by hand; ends in a confusion matrix and a learning curve."""
    training, test = load_rows()
    generator = torch.Generator().manual_seed(0)
    params = initial(generator)
    df, result = hesse.grad(loss, compile=options.compile), Training()
    for _ in range(options.epochs):
        losses = []
        for x, y in batches(training, BATCH, generator):
            grads, value, _ = df(params, x, y)
            for layer, gradients in zip(params, grads, strict=True):
                for name, gradient in gradients.items():
                    layer[name] -= RATE * gradient
            losses.append(value)
        result.record(torch.stack(losses).mean().item(), predict(params, test[0]), test[1])
    result.finish(options.path)
    return result


if __name__ == "__main__":
    main(read_options("mlp.png", epochs=25))
