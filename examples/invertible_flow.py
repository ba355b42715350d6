"""A normalizing flow whose convolutions of 3 x 3 are invertible: exact log-determinant, exact inverse.

Run it with::

    python examples/invertible_flow.py [FIGURE]

A normalizing flow is a density: it maps images to noise, and the log-density of an image is that of its noise plus the
log-determinant of the map (Dinh et al. 2015). Glow (Kingma, Dhariwal 2018) mixes channels by convolutions of 1 x 1, whose
determinant is that of a small matrix. A convolution of 3 x 3 mixes neighbors as well, and with zeros beyond the border nobody
had its determinant but through the whole matrix; taking the picture to be periodic gives another number. Here it is
`hesse.slogdet(A)`, with its derivative by the kernel, and samples are drawn through `hesse.solve(A, y)`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

import hesse
from drawing import BLUE, GRAY, INK, ORANGE, destination, save, style

LEVELS, SHAPE = 17, (4, 4, 4)  # gray levels of the digits; 8 x 8 pixels as 4 channels of 4 x 4
BLOCKS, WIDTH, STEPS, BATCH = 5, 32, 400, 96
TEST = 297


class Mixing(nn.Module):
    """A convolution from a picture to one of its own shape, zeros beyond the border.

    Args:
        kernel: cells along an edge, an odd number.
        generator: draws the first weight, a rotation of the channels.
    """

    def __init__(self, kernel: int, generator: torch.Generator) -> None:
        super().__init__()
        channels = SHAPE[0]
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64, generator=generator)).Q
        weight = torch.zeros(channels, channels, kernel, kernel, dtype=torch.float64)
        weight[:, :, kernel // 2, kernel // 2] = rotation
        self.weight, self.padding = nn.Parameter(weight), kernel // 2

    def operator(self) -> hesse.LinearOperator:
        """The convolution as it is now."""
        return hesse.convolution(self.weight, SHAPE, padding=self.padding)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The picture, and the log-determinant, the same for all pictures."""
        A = self.operator()
        return A @ x, hesse.slogdet(A).logabs

    def inverse(self, y: Tensor) -> Tensor:
        """The picture that was mixed."""
        return hesse.solve(self.operator(), y)


class Coupling(nn.Module):
    """Scales and shifts half of the channels, by what the other half says (Dinh et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        half = SHAPE[0] // 2
        last = nn.Conv2d(WIDTH, 2 * half, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.says = nn.Sequential(
            nn.Conv2d(half, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU(), last
        ).double()

    def _scale_and_shift(self, half: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.says(half).chunk(2, 1)
        return 1.5 * torch.tanh(scale), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The picture, and the log-determinant for each one."""
        a, b = x.chunk(2, 1)
        scale, shift = self._scale_and_shift(a)
        return torch.cat([a, b * scale.exp() + shift], 1), scale.sum((1, 2, 3))

    def inverse(self, y: Tensor) -> Tensor:
        """The picture that was scaled and shifted."""
        a, b = y.chunk(2, 1)
        scale, shift = self._scale_and_shift(a)
        return torch.cat([a, (b - shift) * (-scale).exp()], 1)


class Flow(nn.Module):
    """Mixing and coupling in turn: ``[n, 4, 4, 4]`` to noise of the same shape, and back."""

    def __init__(self, kernel: int, blocks: int = BLOCKS) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.steps = nn.ModuleList(layer for _ in range(blocks) for layer in (Mixing(kernel, generator), Coupling()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The noise, and the log-determinant for each picture."""
        total = x.new_zeros(len(x))
        for step in self.steps:
            x, logdet = step(x)
            total = total + logdet
        return x, total

    def inverse(self, z: Tensor) -> Tensor:
        """The pictures of this noise."""
        for step in reversed(self.steps):
            z = step.inverse(z)
        return z


def squeeze(pictures: Tensor) -> Tensor:
    """Squares of four pixels become four channels: ``[n, 1, 8, 8] -> [n, 4, 4, 4]``."""
    return nn.functional.pixel_unshuffle(pictures, 2)


def digits() -> tuple[Tensor, Tensor]:
    """Levels 0..16, ``[n, 1, 8, 8]``: for training and for the test."""
    images = torch.from_numpy(load_digits().images)[:, None]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[TEST:]], images[order[:TEST]]


def bits(flow: Flow, levels: Tensor, generator: torch.Generator) -> Tensor:
    """Bits per pixel, the mean over pictures: minus the log-density of the levels, made continuous by uniform noise."""
    x = (levels + torch.rand(levels.shape, dtype=levels.dtype, generator=generator)) / LEVELS
    z, logdet = flow(squeeze(x) - 0.5)
    log_density = -0.5 * (z.square() + math.log(2 * math.pi)).sum((1, 2, 3)) + logdet
    return math.log2(LEVELS) - log_density.mean() / (math.log(2) * levels[0].numel())


@dataclass
class Trained:
    """A flow, its bits per pixel on the training batches and on the test pictures, and the seconds that it took."""

    flow: Flow
    train: list[float]
    test: float
    seconds: float


def train(kernel: int, steps: int = STEPS, blocks: int = BLOCKS) -> Trained:
    """By Adam, from a rotation of the channels."""
    torch.manual_seed(0)
    flow, (pictures, held_out), generator = Flow(kernel, blocks), digits(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    found, begin = [], time.perf_counter()
    for _ in range(steps):
        batch = pictures[torch.randint(len(pictures), (BATCH,), generator=generator)]
        loss = bits(flow, batch, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        found.append(loss.item())
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        test = torch.stack([bits(flow, held_out, generator) for _ in range(8)]).mean().item()
    return Trained(flow, found, test, seconds)


def periodic_logdet(weight: Tensor) -> float:
    """What the log-determinant would be if the picture went on periodically: a sum over frequencies."""
    symbol = torch.fft.fft2(weight.detach(), SHAPE[1:]).movedim((0, 1), (2, 3))
    return torch.linalg.slogdet(symbol).logabsdet.sum().item()


@dataclass
class Result:
    """What the figure shows."""

    by_kernel: dict[int, Trained]
    samples: Tensor
    back: float
    exact: list[float]
    periodic: list[float]


@torch.no_grad()
def evaluate(by_kernel: dict[int, Trained], samples: int = 24) -> Result:
    """Samples of the flow with convolutions of 3 x 3, and the error of its inverse on the test pictures."""
    flow = by_kernel[3].flow
    noise = 0.8 * torch.randn(samples, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    drawn = nn.functional.pixel_shuffle(flow.inverse(noise) + 0.5, 2)
    x = squeeze(digits()[1] / LEVELS) - 0.5
    back = (flow.inverse(flow(x)[0]) - x).abs().max().item()
    mixings = [step for step in flow.steps if isinstance(step, Mixing)]
    exact = [float(hesse.slogdet(step.operator()).logabs) for step in mixings]
    return Result(by_kernel, drawn, back, exact, [periodic_logdet(step.weight) for step in mixings])


def tiles(pictures: Tensor, columns: int = 4) -> Tensor:
    """Pictures side by side with a light seam: ``[rows (8 + 1), columns (8 + 1)]``."""
    framed = nn.functional.pad(pictures[:, 0].clamp(0, 1), (0, 1, 0, 1), value=0.5)
    return framed.reshape(-1, columns, 9, 9).transpose(1, 2).reshape(-1, 9 * columns)


def draw(result: Result, path: Path) -> None:
    """Digits, samples, learning curves, and determinants."""
    figure = Figure(figsize=(9, 3.0), layout="constrained", facecolor="white")
    real, drawn, curves, bars = figure.subplots(1, 4, width_ratios=(0.7, 0.7, 1.2, 1.2))
    held_out = digits()[1][: len(result.samples)] / LEVELS
    for axes, pictures, title in ((real, held_out, "test digits"), (drawn, result.samples, "samples")):
        axes.imshow(tiles(pictures).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, loc="left", fontsize=10.5, color=INK)
        axes.set_axis_off()
    for (kernel, trained), color in zip(result.by_kernel.items(), (ORANGE, BLUE), strict=True):
        smooth = torch.tensor(trained.train).unfold(0, min(15, len(trained.train)), 1).mean(1)
        curves.plot(smooth, color=color, linewidth=1.2, label=f"{kernel} x {kernel}, test: {trained.test:.2f}")
    last = [trained.train[-1] for trained in result.by_kernel.values()]
    curves.set_ylim(min(last) - 0.2, max(last) + 1.2)
    curves.legend(frameon=False, labelcolor=INK)
    style(curves, "training", "step", "bits per pixel")
    missed = [whole - other for whole, other in zip(result.exact, result.periodic, strict=True)]
    bars.bar([str(k + 1) for k in range(len(missed))], missed, 0.6, color=GRAY)
    bars.axhline(0, color=INK, linewidth=0.8)
    style(bars, "exact less periodic log |det A|", "convolution of 3 x 3", "nats")
    save(figure, path)


def main(path: Path, steps: int = STEPS, blocks: int = BLOCKS) -> Result:
    """Train with convolutions of 1 x 1 and 3 x 3, print a table, draw the figure."""
    by_kernel = {kernel: train(kernel, steps, blocks) for kernel in (1, 3)}
    print(f"{'convolutions':14}{'bits, training':>16}{'bits, test':>12}{'seconds':>10}")
    for kernel, trained in by_kernel.items():
        last = sum(trained.train[-20:]) / len(trained.train[-20:])
        print(f"{f'{kernel} x {kernel}':14}{last:16.3f}{trained.test:12.3f}{trained.seconds:10.1f}")
    result = evaluate(by_kernel)
    print(f"largest |inverse(forward(x)) - x| on the test digits: {result.back:.1e}")
    print("log |det A|:     " + ", ".join(f"{value:.3f}" for value in result.exact))
    print("as if periodic:  " + ", ".join(f"{value:.3f}" for value in result.periodic))
    draw(result, path)
    return result


if __name__ == "__main__":
    main(destination("invertible_flow.png"))
