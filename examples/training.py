"""What the training examples share: the command line, the digits as rows, a confusion matrix, a learning curve."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.axes import Axes
from torch import Tensor

from digits import load_images
from drawing import BLUE, INK, ORANGE, panels, save, style

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Options:
    """Where the figure goes, how long to train, hesse's mode ("off": direct, "replay" or "native"), and which models."""

    path: Path
    epochs: int
    compile: str = "off"
    models: tuple[str, ...] = ()


def read_options(figure: str, epochs: int, models: tuple[str, ...] = ()) -> Options:
    """The options from the command line; `figure`, `epochs` and all `models` stand where it says nothing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("figure", type=Path, nargs="?", default=Path(figure), help=f"where the figure goes ({figure})")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"how long to train ({epochs})")
    parser.add_argument("--compile", choices=("off", "replay", "native"), default="off", help="the mode of hesse.grad (off)")
    if models:
        parser.add_argument("--models", choices=models, nargs="+", default=models, help="which models to train (all)")
    given = parser.parse_args()
    return Options(given.figure, given.epochs, given.compile, tuple(given.models) if models else ())


def load_rows() -> tuple[Data, Data]:
    """((training rows, labels), (test rows, labels)) of the handwritten digits: float32 ``[N, 64]`` in [0, 1]."""
    (images, labels), (test_images, test_labels) = load_images()
    return (images.flatten(1), labels), (test_images.flatten(1), test_labels)


def batches(data: Data, size: int, generator: torch.Generator) -> Iterator[Data]:
    """The data once, in a random order, `size` samples at a time; what is left over at the end waits for another order."""
    order = torch.randperm(len(data[1]), generator=generator)
    for chosen in order[: len(order) // size * size].split(size):
        yield data[0][chosen], data[1][chosen]


def confusion(scores: Tensor, labels: Tensor) -> Tensor:
    """How often class i (row) was called class j (column): int64 ``[C, C]``."""
    classes = scores.shape[1]
    return torch.bincount(labels * classes + scores.argmax(1), minlength=classes**2).reshape(classes, classes)


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """The fraction of samples whose largest score is that of their label."""
    return (scores.argmax(1) == labels).double().mean().item()


@dataclass
class Training:
    """How the training of a classifier goes: loss and test accuracy by epoch, and the confusion matrix of the last epoch."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    matrix: Tensor = field(default_factory=lambda: torch.zeros(10, 10, dtype=torch.int64))

    def record(self, loss: float, scores: Tensor, labels: Tensor) -> None:
        """Take down, and print, the mean training loss of an epoch and what the scores of the test images are worth."""
        self.losses.append(loss)
        self.accuracies.append(accuracy(scores, labels))
        self.matrix = confusion(scores, labels)
        print(f"epoch {len(self.losses):2}: training loss {loss:.4f}, test accuracy {self.accuracies[-1]:.1%}")

    def finish(self, path: Path) -> None:
        """Print the confusion matrix, and draw the learning curve and the mistakes."""
        print_confusion(self.matrix)
        figure, (curve, mistakes) = panels((1.4, 1.0))
        draw_curve(curve, self.losses, self.accuracies)
        draw_confusion(mistakes, self.matrix)
        save(figure, path)


def print_confusion(matrix: Tensor) -> None:
    """The confusion matrix with the accuracy of each class."""
    print("       called" + "".join(f"{j:4}" for j in range(len(matrix))) + "   right")
    for label, row in enumerate(matrix.tolist()):
        counts = "".join(f"{count or '.':>4}" for count in row)
        print(f"digit {label}      {counts}{row[label] / max(1, sum(row)):8.1%}")


def draw_confusion(axes: Axes, matrix: Tensor) -> None:
    """The mistakes of the confusion matrix as a picture: the diagonal is left empty."""
    mistakes = matrix - matrix.diag().diag()
    axes.imshow(mistakes, cmap="Blues", vmin=0, vmax=max(6, int(mistakes.max())))
    for i, row in enumerate(mistakes.tolist()):
        for j, count in enumerate(row):
            if count:
                axes.text(j, i, str(count), ha="center", va="center", fontsize=8, color=INK if count < 4 else "white")
    axes.set_xticks(range(len(matrix)))
    axes.set_yticks(range(len(matrix)))
    style(axes, "mistakes on test images", "called", "digit")
    axes.grid(visible=False)


def draw_curve(axes: Axes, losses: list[float], accuracies: list[float]) -> None:
    """Training loss (left axis) and test accuracy (right axis) by epoch."""
    epochs = range(1, len(losses) + 1)
    style(axes, "learning curve", "epoch", "training loss")
    axes.plot(epochs, losses, color=BLUE)
    axes.yaxis.label.set_color(BLUE)
    axes.set_ylim(bottom=0)
    other = axes.twinx()
    other.plot(epochs, [100 * value for value in accuracies], color=ORANGE)
    other.set_ylim(80, 100)
    other.set_ylabel("test accuracy, %", color=ORANGE)
    other.spines["top"].set_visible(False)
