"""A convolutional network of functions made of modules on handwritten digits, with `hesse.grad` and `hesse.functional`.

Run it with::

    python examples/cnn.py [FIGURE] [--epochs N] [--compile off|replay|native]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import hesse
from digits import load_images
from training import Options, Training, batches, read_options

RATE, MOMENTUM, BATCH = 0.05, 0.8, 16
Params = dict[str, dict[str, Tensor]]


def network() -> tuple[Callable[[Params, Tensor], Tensor], Params]:
    """(predict, params): two convolutions of 5 x 5 with tanh and pooling, then one linear layer."""
    convolve1, params1 = hesse.functional(nn.Conv2d(1, 16, 5, padding=2))
    convolve2, params2 = hesse.functional(nn.Conv2d(16, 16, 5, padding=2))
    classify, params3 = hesse.functional(nn.Linear(64, 10))

    def predict(params: Params, x: Tensor) -> Tensor:
        """Log-probabilities ``[N, 10]`` of images ``[N, 1, 8, 8]``."""
        hidden = nn.functional.max_pool2d(torch.tanh(convolve1(params["convolution 1"], x)), 2)
        hidden = nn.functional.max_pool2d(torch.tanh(convolve2(params["convolution 2"], hidden)), 2)
        return torch.log_softmax(classify(params["linear"], hidden.flatten(1)), 1)

    params = {"convolution 1": params1, "convolution 2": params2, "linear": params3}
    return predict, {name: {key: value.detach().clone() for key, value in part.items()} for name, part in params.items()}


def main(options: Options) -> Training:
    """Gradient descent with momentum by hand; ends in a confusion matrix and a learning curve."""
    training, test = load_images()
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    predict, params = network()

    def loss(params: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        prediction = predict(params, x)
        return nn.functional.nll_loss(prediction, y), prediction

    velocity = {name: {key: torch.zeros_like(value) for key, value in part.items()} for name, part in params.items()}
    df, result = hesse.grad(loss, compile=options.compile), Training()
    for _ in range(options.epochs):
        losses = []
        for x, y in batches(training, BATCH, generator):
            grads, value, _ = df(params, x, y)
            for name, part in grads.items():
                for key, gradient in part.items():
                    velocity[name][key].mul_(MOMENTUM).add_(gradient)
                    params[name][key] -= RATE * velocity[name][key]
            losses.append(value)
        result.record(torch.stack(losses).mean().item(), predict(params, test[0]), test[1])
    result.finish(options.path)
    return result


if __name__ == "__main__":
    main(read_options("cnn.png", epochs=12))
