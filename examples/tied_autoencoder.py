"""An autoencoder of handwritten digits whose decoder is its encoder transposed, with `hesse.grad` and `hesse.optim`.

Run it with::

    python examples/tied_autoencoder.py [FIGURE] [--epochs N] [--compile off|replay|native]

The weights of the three layers (64-50-25-10) are used twice, once in each direction; each direction has biases of its own. The
loss is the binary cross-entropy of the pixels plus a penalty on the squared weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

import hesse
from drawing import BLUE, GRAY, ORANGE, panels, save, style
from training import Options, batches, load_rows, read_options

SIZES, BATCH, RATE, PENALTY = (64, 50, 25, 10), 32, 3e-3, 1e-6
SHOWN = (3, 7)
Params = dict[str, list[Tensor]]


@dataclass
class Result:
    """Cross-entropy per image by epoch, of training and of test images; test images and what they become."""

    training: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    images: Tensor = field(default_factory=lambda: torch.zeros(0))
    rebuilt: Tensor = field(default_factory=lambda: torch.zeros(0))


def initial(generator: torch.Generator) -> Params:
    """Weights by Glorot and Bengio's (2010) rule for sigmoids, zero biases for both directions."""
    pairs = list(pairwise(SIZES))
    weights = [(2 * torch.rand(m, n, generator=generator) - 1) * 4 * (6 / (m + n)) ** 0.5 for m, n in pairs]
    return {"W": weights, "encode": [torch.zeros(n) for _, n in pairs], "decode": [torch.zeros(m) for m, _ in pairs]}


def encode(params: Params, x: Tensor) -> Tensor:
    """``[N, 64]`` pixels to ``[N, 10]`` codes between 0 and 1."""
    for W, b in zip(params["W"], params["encode"], strict=True):
        x = torch.sigmoid(x @ W + b)
    return x


def decode(params: Params, code: Tensor) -> Tensor:
    """``[N, 10]`` codes to ``[N, 64]`` pixels between 0 and 1, through the same weights transposed."""
    for W, b in zip(reversed(params["W"]), reversed(params["decode"]), strict=True):
        code = torch.sigmoid(code @ W.T + b)
    return code


def cross_entropy(rebuilt: Tensor, x: Tensor) -> Tensor:
    """Of the pixels, summed over an image, mean over images; probabilities are kept 1e-6 away from 0 and 1."""
    p = rebuilt.clamp(1e-6, 1 - 1e-6)
    return -(x * p.log() + (1 - x) * (1 - p).log()).sum(1).mean()


def loss(params: Params, x: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and penalty, and the rebuilt images."""
    rebuilt = decode(params, encode(params, x))
    penalty = sum((W**2).sum() for W in params["W"])
    return cross_entropy(rebuilt, x) + PENALTY / 2 * penalty, rebuilt


def mosaic(result: Result) -> Tensor:
    """Rows of test images, each above what the autoencoder makes of it, with white lines between."""
    rows, columns = SHOWN
    pairs = torch.stack([result.images, result.rebuilt], 1)[: rows * columns].reshape(rows, columns, 2, 8, 8)
    framed = torch.nn.functional.pad(pairs, (1, 1, 0, 1))
    return framed.permute(0, 2, 3, 1, 4).reshape(rows * 18, columns * 10)


def draw(result: Result, path: Path) -> None:
    """The learning curves; test images above what the autoencoder makes of them."""
    figure, (curve, pictures) = panels((1.0, 1.4))
    epochs = range(1, len(result.training) + 1)
    curve.plot(epochs, result.training, color=BLUE, label="training images")
    curve.plot(epochs, result.test, color=ORANGE, label="test images")
    style(curve, "learning curve", "epoch", "cross-entropy per image, nats")
    curve.legend(frameon=False, labelcolor=GRAY)
    pictures.imshow(mosaic(result), cmap="gray_r")
    style(pictures, "test images; under each, rebuilt from ten numbers", "", "")
    pictures.set_axis_off()
    save(figure, path)


def main(options: Options) -> Result:
    """Adam on mini-batches; ends in a table and a figure."""
    (training, _), (test, _) = load_rows()
    generator = torch.Generator().manual_seed(0)
    params, result = initial(generator), Result(images=test)
    df = hesse.grad(loss, compile=options.compile)
    step = hesse.optim(df, params, lambda leaves: torch.optim.Adam(leaves, lr=RATE))
    for epoch in range(1, options.epochs + 1):
        losses = []
        for x, _ in batches((training, training), BATCH, generator):
            _, _, rebuilt = step(x)
            losses.append(cross_entropy(rebuilt, x))
        result.training.append(torch.stack(losses).mean().item())
        result.rebuilt = decode(params, encode(params, test))
        result.test.append(cross_entropy(result.rebuilt, test).item())
        if epoch % 10 == 0:
            print(f"epoch {epoch:3}: cross-entropy per image {result.training[-1]:.3f}, on test images {result.test[-1]:.3f}")
    mean = training.mean(0).expand_as(test)
    best = cross_entropy(test, test).item()
    print(f"{'test images':34}{'cross-entropy':>14}{'above the least':>17}{'squared error':>15}")
    _, _, V = torch.linalg.svd(training - training.mean(0), full_matrices=False)
    components = mean + (test - mean) @ V[:10].T @ V[:10]
    rows = {"the mean image": mean, "ten principal components": components, "ten codes, tied weights": result.rebuilt}
    for name, rebuilt in (rows | {"the image itself": test}).items():
        value, squared = cross_entropy(rebuilt, test).item(), (rebuilt - test).square().sum(1).mean().item()
        print(f"{name:34}{value:14.3f}{value - best:17.3f}{squared:15.3f}")
    draw(result, options.path)
    return result


if __name__ == "__main__":
    main(read_options("tied_autoencoder.png", epochs=60))
