"""The blur is that of torch, both inverses are what they say, and only one of them knows the border."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F


def matrix(kernel: torch.Tensor, size: tuple[int, int], border: str) -> torch.Tensor:
    """A column for each pixel, by torch's own padding and convolution."""
    n = size[0] * size[1]
    units = torch.eye(n, dtype=kernel.dtype).reshape(n, 1, *size)
    pad = [k // 2 for k in reversed(kernel.shape[2:]) for _ in range(2)]
    padded = F.pad(units, pad, mode={"zeros": "constant"}.get(border, border))
    return F.conv2d(padded, kernel).reshape(n, n).T


@pytest.mark.parametrize("border", ["zeros", "reflect"])
def test_the_blur_is_inverted_with_its_border(example, border) -> None:
    module = example("deblurring")
    picture = torch.rand(3, 11, 14, dtype=torch.float64)
    found = module.restore(picture, border)
    M = matrix(module.defocus(), (11, 14), border)
    torch.testing.assert_close(found.blurred.reshape(3, -1), picture.reshape(3, -1) @ M.T)
    expected = found.blurred.reshape(3, -1) @ torch.linalg.inv(M).T
    torch.testing.assert_close(found.ours.reshape(3, -1), expected, rtol=1e-9, atol=1e-9)
    assert module.error(found.ours, picture) < 1e-8 < 1 < module.error(found.fourier, picture)


@pytest.mark.parametrize("kernel, size", [("defocus", (12, 15)), ("motion", (20,))])
def test_the_usual_way_is_right_where_the_picture_goes_on_periodically(example, kernel, size) -> None:
    module = example("deblurring")
    K = getattr(module, kernel)() + 0.01 * torch.rand(getattr(module, kernel)().shape, dtype=torch.float64)
    x = torch.rand(2, 1, *size, dtype=torch.float64)
    pad = [k // 2 for k in reversed(K.shape[2:]) for _ in range(2)]
    y = (F.conv2d if len(size) == 2 else F.conv1d)(F.pad(x, pad, mode="circular"), K)
    torch.testing.assert_close(module.by_fourier(K, y), x, rtol=1e-7, atol=1e-7)
    assert module.by_fourier(K, y, rtol=0.9).std() < 0.5 * x.std()


def test_noise_wants_truncation_and_the_figure_is_drawn(example, tmp_path) -> None:
    module = example("deblurring")
    result = module.main(tmp_path / "figure.png", 24, (0.2, 0.05, 0.01))
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    noisy = result.noisy
    assert min(noisy.errors["hesse"].values()) < 0.8 * min(noisy.errors["Fourier"].values())
    assert min(noisy.errors["hesse"].values()) < module.error(noisy.plain, result.picture)


def test_truncation_is_that_of_the_singular_values(example) -> None:
    module = example("deblurring")
    picture = torch.rand(3, 13, 13, dtype=torch.float64)
    noisy = module.restore_noisy(picture, (0.1,))
    units = F.pad(torch.eye(13, dtype=torch.float64)[:, None], (4, 4), mode="reflect")
    M = F.conv1d(units, module.motion())[:, 0].T
    expected = noisy.blurred @ torch.linalg.pinv(M, rtol=0.1).T
    torch.testing.assert_close(noisy.ours, expected, rtol=1e-9, atol=1e-9)
