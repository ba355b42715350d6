"""What the first layer of a ResNet keeps of a photograph: its least-squares inverse.

Run it with::

    python examples/resnet_stem_inverse.py [FIGURE]

The stem of a ResNet (He et al. 2016) is a convolution of 7 x 7 with stride 2 and padding 3 from 3 colors to 64 channels. It
makes 16 numbers of 3, so the picture can be had back: `hesse.pinv` of the strided convolution gives the picture whose features
are nearest. Of the same filters, fewer and fewer are kept here. Twelve give as many features as pixels; with less than that
the shortest of all pictures with these features comes out. The transposed convolution, which is often put in the place of the
inverse, is shown beside it.

Nothing is downloaded, so the filters are not trained ones but those that a ResNet starts from, which are random.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image
from torch import Tensor

import hesse
from drawing import BLUE, GRAY, INK, ORANGE, destination, save, style

SIDE, CORNER = 96, (140, 230)
FILTERS, KERNEL = 64, 7
KEPT = (64, 32, 24, 16, 8, 4)
SHOWN = (64, 16, 8, 4)


def photograph(side: int) -> Tensor:
    """A square of scikit-learn's picture of a flower, in 0..1: ``[3, side, side]``."""
    top, left = CORNER
    picture = torch.from_numpy(load_sample_image("flower.jpg").copy()).double() / 255
    halved = torch.nn.functional.avg_pool2d(picture.permute(2, 0, 1)[None], 2)[0]
    return halved[:, top // 2 : top // 2 + side, left // 2 : left // 2 + side].contiguous()


def stem(filters: int = FILTERS, kernel: int = KERNEL) -> torch.nn.Conv2d:
    """The layer as a ResNet begins with it: normal numbers, as large as Kaiming's rule says."""
    layer = torch.nn.Conv2d(3, filters, kernel, stride=2, padding=kernel // 2, bias=False, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    return layer


def error(x: Tensor, truth: Tensor) -> float:
    """``|x - truth| / |truth|``."""
    return ((x - truth).norm() / truth.norm()).item()


def rounded(features: Tensor, bits: int = 8) -> Tensor:
    """To the nearest of 2^bits levels of each channel."""
    low, high = features.amin((1, 2), keepdim=True), features.amax((1, 2), keepdim=True)
    step = (high - low).clamp_min(1e-30) / (2**bits - 1)
    return low + ((features - low) / step).round() * step


@dataclass
class Inverted:
    """What a number of filters gives back.

    Attributes:
        shape: of the convolution as a matrix.
        picture: by the pseudo-inverse.
        transposed: by the transposed convolution, scaled to fit best.
        from_rounded: by the pseudo-inverse from features of 8 bits.
        seconds: for the pseudo-inverse with its application.
        residual: ``|A x - y| / |y|``.
    """

    shape: tuple[int, int]
    picture: Tensor
    transposed: Tensor
    from_rounded: Tensor
    seconds: float
    residual: float


@torch.no_grad()
def invert(layer: torch.nn.Conv2d, picture: Tensor, kept: int) -> Inverted:
    """Features of the first filters, and back."""
    A = hesse.convolution(layer.weight[:kept], tuple(picture.shape), stride=layer.stride, padding=layer.padding)
    y = A @ picture
    begin = time.perf_counter()
    inverse = hesse.pinv(A)
    x, coarse = inverse @ torch.stack([y, rounded(y)])
    seconds = time.perf_counter() - begin
    transposed = A.T @ y
    scale = (transposed * picture).sum() / transposed.square().sum()
    return Inverted(A.shape, x, scale * transposed, coarse, seconds, error(A @ x, y))


def show(axes: Axes, image: Tensor, title: str) -> None:
    """A picture without ticks."""
    axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy())
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])


@dataclass
class Result:
    """What the figure shows."""

    picture: Tensor
    layer: torch.nn.Conv2d
    by_kept: dict[int, Inverted]


def draw(result: Result, path: Path) -> None:
    """Above: the picture, the filters, what 64 and fewer of them give back. Below: the transposed convolution, and errors."""
    figure = Figure(figsize=(9, 4.2), layout="constrained", facecolor="white")
    parts = figure.subfigures(2, 1)
    above, below = parts[0].subplots(1, 5), parts[1].subplots(1, 4, width_ratios=(1, 1, 1, 2.2))
    shown = [kept for kept in SHOWN if kept in result.by_kept]
    show(above[0], result.picture, "original")
    for axes, kept in zip(above[1:], shown, strict=False):
        found = result.by_kept[kept]
        show(axes, found.picture, f"{kept} filters: {_percent(error(found.picture, result.picture))}")
    weight = result.layer.weight.detach()[:16]
    scaled = 0.5 + 0.5 * weight / weight.abs().amax((1, 2, 3), keepdim=True)
    tiled = torch.nn.functional.pad(scaled, (0, 1, 0, 1), value=1.0).reshape(4, 4, 3, KERNEL + 1, KERNEL + 1)
    show(below[0], tiled.permute(2, 0, 3, 1, 4).reshape(3, 4 * (KERNEL + 1), -1), "16 of the filters")
    found = result.by_kept[shown[0]]
    show(below[1], found.transposed, f"transposed: {_percent(error(found.transposed, result.picture))}")
    show(below[2], found.from_rounded, f"8-bit features: {_percent(error(found.from_rounded, result.picture))}")
    curve, counts = below[3], sorted(result.by_kept)
    for name, color, label in (
        ("transposed", GRAY, "transposed convolution"),
        ("from_rounded", ORANGE, "inverse, 8-bit features"),
        ("picture", BLUE, "inverse"),
    ):
        errors = [error(getattr(result.by_kept[kept], name), result.picture) for kept in counts]
        curve.loglog(counts, errors, "o-", color=color, markersize=3.5, label=label)
    curve.axvline(12, color=GRAY, linewidth=1, linestyle="--", label="as many features as pixels")
    curve.set_xticks(counts, [str(kept) for kept in counts])
    curve.minorticks_off()
    curve.legend(frameon=False, labelcolor=INK, fontsize=8)
    style(curve, "how much is missing", "filters kept", "relative error")
    save(figure, path)


def _percent(value: float) -> str:
    return f"{value:.0e}" if value < 1e-3 else f"{value:.1%}"


def main(path: Path, side: int = SIDE, kept: tuple[int, ...] = KEPT) -> Result:
    """Invert, print a table, draw the figure."""
    picture, layer = photograph(side), stem()
    print(f"{side} x {side} pixels of 3 colors, convolution of 7 x 7 with stride 2")
    print(f"{'filters':>8}{'matrix':>18}{'error':>12}{'8 bits':>12}{'transposed':>12}{'|Ax - y|/|y|':>14}{'seconds':>10}")
    by_kept = {}
    for count in kept:
        found = by_kept[count] = invert(layer, picture, count)
        errors = "".join(f"{error(x, picture):12.2g}" for x in (found.picture, found.from_rounded, found.transposed))
        shape = f"{found.shape[0]:,} x {found.shape[1]:,}"
        print(f"{count:8}{shape:>18}{errors}{found.residual:14.1e}{found.seconds:10.2f}")
    result = Result(picture, layer, by_kept)
    draw(result, path)
    return result


if __name__ == "__main__":
    main(destination("resnet_stem_inverse.png"))
