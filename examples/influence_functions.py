"""Influence functions: which training images made LeNet misread a digit, checked by training without them.

Run it with::

    python examples/influence_functions.py [FIGURE]

With the training objective ``sum_n loss_n(w) + PRIOR |w|² / 2`` at its minimum, H its Hessian there, and g the gradient of a
test image's loss, leaving out training image n changes that loss by about ``gᵀ H⁻¹ g_n`` (Cook, Weisberg 1982; Koh, Liang
2017). The last layer of a trained LeNet is fitted to its minimum, which is unique, so that leaving out an image and fitting
again says what is true.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import hesse
from digits import LeNet, load_images, train
from drawing import BLUE, GRAY, INK, destination, panels, save, style

PRIOR = 10.0
LAYER = ["fc3.weight", "fc3.bias"]
LEFT_OUT = 20
SHOWN = 3
TOTAL = nn.CrossEntropyLoss(reduction="sum")
Batch = tuple[Tensor, Tensor]


def influence(model: nn.Module, training: Batch, test: Batch) -> Tensor:
    """By how much the summed loss of the test images rises when a training image is left out: ``[N]``, to first order."""
    H = hesse.loss_hessian(model, TOTAL, training, params=LAYER)
    rows = hesse.parameter_jacobian(model, TOTAL, training, params=LAYER)
    test_rows = hesse.parameter_jacobian(model, TOTAL, test, params=LAYER)
    gradient = test_rows.T @ torch.ones(len(test[1]), dtype=torch.float64)
    return rows @ hesse.solve(H + PRIOR * hesse.identity(H.in_space), gradient)


def features(model: LeNet, images: Tensor) -> Tensor:
    """What the last layer reads, ``[N, 42]``."""
    seen: list[Tensor] = []
    handle = model.fc3.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0]


def fit(layer: nn.Linear, inputs: Tensor, labels: Tensor) -> None:
    """Minimize the objective over the last layer, from where it is, until its gradient is below 1e-3."""
    parameters = list(layer.parameters())
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=500, history_size=30, tolerance_grad=1e-3, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = TOTAL(layer(inputs), labels) + PRIOR / 2 * sum(p.square().sum() for p in parameters)
        value.backward()
        return value

    optimizer.step(objective)


def fitted_lenet(training: Batch) -> LeNet:
    """A LeNet in float64, trained by Adam; then its last layer is at the minimum of the objective."""
    torch.manual_seed(0)
    model = LeNet()
    train(model, *training)
    model.double().eval()
    fit(model.fc3, features(model, training[0].double()), training[1])
    return model


def retrained_without(model: LeNet, training: Batch, test: Batch, left_out: list[int]) -> Tensor:
    """The change of the test loss when the last layer is fitted again without one training image, for each of these."""
    inputs, test_inputs = features(model, training[0]), features(model, test[0])
    before = TOTAL(model.fc3(test_inputs), test[1]).item()
    start, changes = {k: v.clone() for k, v in model.fc3.state_dict().items()}, []
    for n in left_out:
        kept = torch.arange(len(inputs)) != n
        fit(model.fc3, inputs[kept], training[1][kept])
        changes.append(TOTAL(model.fc3(test_inputs), test[1]).item() - before)
        model.fc3.load_state_dict(start)
    return torch.tensor(changes)


@dataclass(frozen=True)
class Result:
    """Influences of all training images on one test image, what it is read as, and the truth for those that were left out."""

    training: Batch
    test: Batch
    read: int
    predicted: Tensor
    left_out: list[int]
    actual: Tensor

    @property
    def correlation(self) -> float:
        return torch.corrcoef(torch.stack([self.predicted[self.left_out], self.actual]))[0, 1].item()


def draw(result: Result, path: Path) -> None:
    """Predicted against actual changes, the test image, and the most helpful and the most harmful training images."""
    figure, (scatter, pictures) = panels((1.2, 1.0), height=4.0)
    x, y = result.actual.numpy(), result.predicted[result.left_out].numpy()
    scatter.axline((0, 0), slope=1, color=GRAY, linewidth=1)
    scatter.plot(x, y, "o", color=BLUE, alpha=0.75, markersize=6, markeredgewidth=0)
    limit = 1.1 * max(abs(x).max(), abs(y).max())
    scatter.set(xlim=(-limit, limit), ylim=(-limit, limit))
    style(scatter, f"correlation {result.correlation:.3f}", "change of loss, trained without the image", "influence function")
    pictures.axis("off")
    order = result.predicted.argsort()
    rows = {"misread": (result.test, [0]), "helped": (result.training, order.flip(0)[:SHOWN]),
            "harmed": (result.training, order[:SHOWN])}  # fmt: skip
    for row, (name, ((images, labels), chosen)) in enumerate(rows.items()):
        pictures.text(0.0, 0.82 - 0.345 * row, name, transform=pictures.transAxes, va="center", color=INK)
        for column, n in enumerate(chosen):
            inset = pictures.inset_axes((0.24 + 0.25 * column, 0.69 - 0.345 * row, 0.24, 0.26))
            inset.imshow(images[n, 0].numpy(), cmap="gray_r")
            read = f", read as {result.read}" if name == "misread" else ""
            inset.set_title(f"labeled {labels[n].item()}{read}", fontsize=8.5, pad=2, color=INK)
            inset.set_xticks([])
            inset.set_yticks([])
    save(figure, path)


def main(path: Path) -> Result:
    """Explain the test image with the largest loss, print a table, draw the figure."""
    (images, labels), (test_images, test_labels) = load_images()
    model = fitted_lenet((images, labels))
    training, test_images = (images.double(), labels), test_images.double()
    losses = nn.functional.cross_entropy(model(test_images), test_labels, reduction="none")
    hardest = losses.argmax().item()
    test = (test_images[[hardest]], test_labels[[hardest]])
    read = model(test[0]).argmax().item()
    print(f"test image {hardest}, a {test[1].item()}, is read as a {read} (loss {losses[hardest].item():.2f})")
    predicted = influence(model, training, test)
    extremes = predicted.abs().argsort(descending=True)[: LEFT_OUT // 2].tolist()
    others = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))[: LEFT_OUT // 2].tolist()
    left_out = list(dict.fromkeys(extremes + others))
    result = Result(training, test, read, predicted, left_out, retrained_without(model, training, test, left_out))
    print(f"{'left out':>9}{'label':>7}{'influence':>11}{'actual':>9}")
    for n, change in list(zip(left_out, result.actual.tolist(), strict=True))[:6]:
        print(f"{n:9}{labels[n].item():7}{predicted[n].item():+11.4f}{change:+9.4f}")
    print(f"correlation over {len(left_out)} images: {result.correlation:.4f}")
    draw(result, path)
    return result


if __name__ == "__main__":
    main(destination("influence_functions.png"))
