"""Deblurring a photograph: the exact inverse of a blur with its border, beside the usual division in Fourier space.

Run it with::

    python examples/deblurring.py [FIGURE]

A blur is a convolution, and what lies beyond the border takes part in it: zeros, or the picture reflected. The usual inverse
divides by the kernel's Fourier transform, which takes the picture to go on periodically. It is wrong at the border, and the
inverse of a blur is long, so that the mistake reaches far into the picture. `hesse.pinv` inverts the convolution that was
applied, border and all. Below that is a motion blur with noise, where neither wants to invert what the blur has all but
erased: singular values below `rtol` times the largest are left out, as in `torch.linalg.pinv`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from sklearn.datasets import load_sample_image
from torch import Tensor

import hesse
from drawing import BLUE, INK, ORANGE, destination, save, style

SIDE, CORNER = 192, (60, 200)
MOTION, NOISE = 9, 0.01
TOLERANCES = tuple(10 ** (-k / 4) for k in range(2, 13))
BORDERS = ("zeros", "reflect")


def photograph(side: int) -> Tensor:
    """A square of scikit-learn's picture of a pagoda, in 0..1: ``[3, side, side]``."""
    top, left = CORNER
    picture = torch.from_numpy(load_sample_image("china.jpg").copy()).double() / 255
    return picture[top : top + side, left : left + side].permute(2, 0, 1).contiguous()


def defocus(radius: int = 3) -> Tensor:
    """A bell that is wider along one diagonal, as of a lens that is out of focus and tilted: ``[1, 1, k, k]``, of sum 1."""
    u = torch.arange(-radius, radius + 1, dtype=torch.float64)
    x, y = u[None, :], u[:, None]
    bell = torch.exp(-((x + y) ** 2 / 2.4 + (x - y) ** 2 / 1.3) / 2)
    return (bell / bell.sum())[None, None]


def motion(pixels: int = MOTION) -> Tensor:
    """A camera that moves along the rows while the shutter is open: ``[1, 1, pixels]``, of sum 1."""
    return torch.full((1, 1, pixels), 1 / pixels, dtype=torch.float64)


def by_fourier(kernel: Tensor, y: Tensor, rtol: float = 0.0) -> Tensor:
    """The usual way: divide by the kernel's transform where that is above `rtol` of its maximum. ``[..., *size]``."""
    size, axes = y.shape[-(kernel.ndim - 2) :], tuple(range(2 - kernel.ndim, 0))
    spread = torch.zeros(size, dtype=y.dtype)
    spread[tuple(slice(k) for k in kernel.shape[2:])] = kernel[0, 0]
    centered = torch.roll(spread, tuple(-(k // 2) for k in kernel.shape[2:]), axes)
    transform = torch.fft.rfftn(centered).conj()  # conjugate: layers correlate
    kept = transform.abs() > rtol * transform.abs().max()
    inverse = torch.where(kept, 1 / torch.where(kept, transform, 1), 0)
    return torch.fft.irfftn(torch.fft.rfftn(y, dim=axes) * inverse, size, axes)


def blur(kernel: Tensor, size: tuple[int, ...], border: str) -> hesse.LinearOperator:
    """The convolution that keeps the size, with this border, as an operator on images of one channel."""
    return hesse.convolution(kernel, (1, *size), padding=tuple(k // 2 for k in kernel.shape[2:]), padding_mode=border)


def error(x: Tensor, truth: Tensor) -> float:
    """Root mean square, in gray levels of 256."""
    return 256 * (x - truth).square().mean().sqrt().item()


@dataclass
class Restored:
    """One border: the blurred picture, both answers, and the seconds for hesse's inverse and for applying it."""

    border: str
    blurred: Tensor
    fourier: Tensor
    ours: Tensor
    seconds: tuple[float, float]


def restore(picture: Tensor, border: str) -> Restored:
    """Blur the picture and undo it in both ways; its three colors are a batch of images of one channel."""
    kernel, truth = defocus(), picture[:, None]
    A = blur(kernel, tuple(picture.shape[1:]), border)
    y = A @ truth
    begin = time.perf_counter()
    inverse = hesse.pinv(A)
    made = time.perf_counter()
    ours = inverse @ y
    seconds = made - begin, time.perf_counter() - made
    return Restored(border, y[:, 0], by_fourier(kernel, y)[:, 0], ours[:, 0], seconds)


@dataclass
class Noisy:
    """The moved and noisy picture, the answers without truncation and at the best tolerance, and errors by tolerance."""

    blurred: Tensor
    plain: Tensor
    fourier: Tensor
    ours: Tensor
    errors: dict[str, dict[float, float]]


def restore_noisy(picture: Tensor, tolerances: tuple[float, ...] = TOLERANCES) -> Noisy:
    """Motion along the rows, with a reflected border and noise: a convolution in one dimension, of which rows are a batch."""
    kernel, truth = motion(), picture[..., None, :]
    A = blur(kernel, (picture.shape[-1],), "reflect")
    y = A @ truth
    y = y + NOISE * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    found = {
        "Fourier": {rtol: by_fourier(kernel, y, rtol) for rtol in tolerances},
        "hesse": {rtol: hesse.pinv(A, rtol=rtol) @ y for rtol in tolerances},
    }
    errors = {way: {rtol: error(x, truth) for rtol, x in answers.items()} for way, answers in found.items()}
    fourier, ours = (found[way][min(errors[way], key=errors[way].__getitem__)] for way in ("Fourier", "hesse"))
    plain = hesse.pinv(A) @ y
    return Noisy(*(image[..., 0, :] for image in (y, plain, fourier, ours)), errors)


def show(axes: Axes, image: Tensor, title: str) -> None:
    """A picture without ticks; values beyond black and white are cut off."""
    axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy())
    axes.set_title(title, fontsize=8.5, color=INK, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])


def show_error(axes: Axes, image: Tensor, truth: Tensor) -> AxesImage:
    """The size of the error at each pixel, in gray levels, its logarithm."""
    size = (image - truth).square().mean(0).sqrt().mul(256).clamp_min(1e-12).log10()
    axes.set_title("its error", fontsize=8.5, color=INK, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(size.numpy(), cmap="magma", vmin=-12, vmax=2)


def draw(picture: Tensor, restored: list[Restored], noisy: Noisy, path: Path) -> None:
    """A row for each border: blurred, both answers, where they are wrong. Below: motion and noise."""
    figure = Figure(figsize=(9, 5.2), layout="constrained", facecolor="white")
    above, below = figure.subfigures(2, 1, height_ratios=(2, 1.1))
    rows = above.subplots(2, 6)
    for axes, found in zip(rows, restored, strict=True):
        show(axes[0], picture, "original")
        show(axes[1], found.blurred, f"blurred, {found.border}")
        show(axes[2], found.fourier, f"Fourier: {error(found.fourier, picture):.0f} off")
        show_error(axes[3], found.fourier, picture)
        show(axes[4], found.ours, f"hesse: {error(found.ours, picture):.0e} off")
        shown = show_error(axes[5], found.ours, picture)
    bar = above.colorbar(shown, ax=list(rows[:, 5]), fraction=0.06, pad=0.03, ticks=[-12, -8, -4, 0])
    bar.ax.set_yticklabels(["$10^{-12}$", "$10^{-8}$", "$10^{-4}$", "1"], fontsize=7)
    best = {way: min(errors, key=errors.__getitem__) for way, errors in noisy.errors.items()}
    *images, curve = below.subplots(1, 5, width_ratios=(1, 1, 1, 1, 1.25))
    for axes, image, title in zip(
        images,
        (noisy.blurred, noisy.plain, noisy.fourier, noisy.ours),
        ("moved, noise of 1 %", "hesse, nothing left out", *(f"{way}, rtol = {rtol:.2f}" for way, rtol in best.items())),
        strict=True,
    ):
        show(axes, image, title)
    for (way, errors), color in zip(noisy.errors.items(), (ORANGE, BLUE), strict=True):
        curve.semilogx(list(errors), list(errors.values()), "o-", color=color, markersize=2.5, label=way)
    style(curve, "", "rtol", "")
    curve.set_ylim(0, 2 * max(noisy.errors["hesse"].values()))
    curve.set_title("off by, gray levels", fontsize=8.5, color=INK, loc="left")
    curve.tick_params(labelsize=7)
    curve.legend(frameon=False, labelcolor=INK, fontsize=7)
    save(figure, path)


@dataclass
class Result:
    """What the figure shows."""

    picture: Tensor
    restored: list[Restored]
    noisy: Noisy


def main(path: Path, side: int = SIDE, tolerances: tuple[float, ...] = TOLERANCES) -> Result:
    """Blur, restore, print tables, draw the figure."""
    picture = photograph(side)
    restored = [restore(picture, border) for border in BORDERS]
    print(f"{side} x {side} pixels of 3 colors; errors as root mean square, in gray levels of 256")
    print(f"{'border':10}{'blurred':>12}{'Fourier':>12}{'hesse':>12}{'inverse':>12}{'apply':>12}")
    for found in restored:
        cells = "".join(f"{error(x, picture):12.2g}" for x in (found.blurred, found.fourier, found.ours))
        print(f"{found.border:10}{cells}" + "".join(f"{seconds * 1e3:9.1f} ms" for seconds in found.seconds))
    noisy = restore_noisy(picture, tolerances)
    print(f"motion of {MOTION} pixels, noise of {NOISE:.0%}: off by {error(noisy.blurred, picture):.1f}; "
          f"inverted without truncation by {error(noisy.plain, picture):.2g}")  # fmt: skip
    print(f"{'rtol':>10}" + "".join(f"{way:>12}" for way in noisy.errors))
    for rtol in tolerances:
        print(f"{rtol:10.4f}" + "".join(f"{errors[rtol]:12.2f}" for errors in noisy.errors.values()))
    result = Result(picture, restored, noisy)
    draw(picture, restored, noisy, path)
    return result


if __name__ == "__main__":
    main(destination("deblurring.png"))
