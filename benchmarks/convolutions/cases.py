"""What is measured: convolutions, their pictures, and in which ways they are inverted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A convolution of 3 x 3 that keeps channels and size.

    Attributes:
        title: for the tables.
        channels, side: of a picture.
        ways: by which it is inverted, in this order.
        noise: of the kernel around the identity, times a random kernel of norm about one; infinite: the random kernel alone.
        padding_mode: what stands beyond the border.
        batch: pictures.
        dtype: of kernel and pictures.
        rtol: singular values up to this part of the largest count as zero; 0 for the default.
        limit: seconds that a way may take.
    """

    title: str
    channels: int
    side: int
    ways: tuple[str, ...]
    noise: float = math.inf
    padding_mode: str = "zeros"
    batch: int = 1
    dtype: str = "float64"
    rtol: float = 0.0
    limit: float = 300.0

    def weight(self) -> Tensor:
        """``[channels, channels, 3, 3]``: ``torch.randn`` of float32 after seed 0, or the identity and a part of it."""
        torch.manual_seed(0)
        kernel = torch.randn(self.channels, self.channels, 3, 3).double()
        if self.noise < math.inf:
            kernel *= self.noise / (9 * self.channels) ** 0.5
            kernel[range(self.channels), range(self.channels), 1, 1] += 1
        return kernel.to(getattr(torch, self.dtype))

    def pictures(self) -> Tensor:
        """``[batch, channels, side, side]``."""
        generator = torch.Generator().manual_seed(1)
        shape = (self.batch, self.channels, self.side, self.side)
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(getattr(torch, self.dtype))

    def forward(self, weight: Tensor, x: Tensor) -> Tensor:
        """The convolution, by torch alone."""
        if self.padding_mode == "zeros":
            return torch.nn.functional.conv2d(x, weight, padding=1)
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode=self.padding_mode), weight)

    def adjoint(self, weight: Tensor, y: Tensor) -> Tensor:
        """Its adjoint, zeros beyond the border."""
        return torch.nn.functional.conv_transpose2d(y, weight, padding=1)


ITERATIVE = ("cgls", "scipy", "deepinv", "deepinv_lsqr")
CASES = {
    "posted": Case("random kernel, 32 x 128 x 128", 32, 128, ("hesse", "fourier", *ITERATIVE)),
    "benign": Case("identity + 0.3 random, 32 x 64 x 64", 32, 64, ("krylov", "hesse", "fourier", *ITERATIVE), noise=0.3),
    "benign_large": Case("identity + 0.3 random, 32 x 128 x 128", 32, 128, ("krylov",), noise=0.3),
    "benign_half": Case("identity + 0.5 random, 32 x 64 x 64", 32, 64, ("krylov",), noise=0.5),
    "circular": Case("circular, 32 x 128 x 128, float64", 32, 128, ("circular",), padding_mode="circular", batch=16),
    "circular_32": Case(
        "circular, 32 x 128 x 128, float32", 32, 128, ("circular",), padding_mode="circular", batch=16, dtype="float32"
    ),
    "circular_resnet": Case("circular, 64 x 56 x 56, float64", 64, 56, ("circular",), padding_mode="circular", batch=16),
    "truncated": Case("random kernel, 1 x 64 x 64, rtol = 0.001", 1, 64, ("hesse", "dense"), rtol=1e-3, limit=420.0),
}
QUICK = {
    "posted": Case("random kernel, 8 x 16 x 16", 8, 16, ("hesse", "fourier", *ITERATIVE), limit=60.0),
    "benign": Case("identity + 0.3 random, 8 x 16 x 16", 8, 16, ("krylov", "hesse", "fourier"), noise=0.3, limit=60.0),
    "circular": Case("circular, 8 x 32 x 32", 8, 32, ("circular",), padding_mode="circular", batch=16, limit=60.0),
    "truncated": Case("random kernel, 1 x 24 x 24, rtol = 0.001", 1, 24, ("hesse", "dense"), rtol=1e-3, limit=60.0),
}
WAYS = {
    "hesse": "hesse",
    "krylov": "hesse",
    "circular": "hesse",
    "fourier": "torch",
    "cgls": "torch",
    "dense": "torch",
    "scipy": "torch",
    "deepinv": "deepinv",
    "deepinv_lsqr": "deepinv",
}
TITLES = {
    "hesse": "hesse",
    "krylov": "hesse, Krylov",
    "circular": "hesse",
    "fourier": "FFT, as usual",
    "cgls": "CGLS, 2,000 steps",
    "dense": "torch.linalg.pinv",
    "scipy": "SciPy LSMR",
    "deepinv": "deepinv, CG",
    "deepinv_lsqr": "deepinv, LSQR",
}
