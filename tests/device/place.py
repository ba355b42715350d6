"""Where a case runs and in which precision; the numbers that it is given are the same everywhere."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import hesse
from hesse.operators.base import LinearOperator


@dataclass(frozen=True)
class Place:
    """A device and a precision."""

    device: str
    dtype: torch.dtype
    autocast: bool = False

    def __str__(self) -> str:
        return "autocast" if self.autocast else str(self.dtype).removeprefix("torch.")

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """The autocast region of the case, and matrix products of float32 that are float32."""
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        try:
            kind = torch.device(self.device).type
            with torch.autocast(kind, torch.bfloat16) if self.autocast else contextlib.nullcontext():
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

    def tensor(self, *shape: int, seed: int = 0) -> Tensor:
        """Normal numbers that bfloat16 can hold."""
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return drawn.bfloat16().to(self.device, self.dtype)

    def integers(self, high: int, *shape: int, seed: int = 0) -> Tensor:
        """Whole numbers below `high`."""
        return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def filled(self, module: nn.Module) -> Any:
        """A module with parameters from `tensor`."""
        with torch.no_grad():
            for number, parameter in enumerate(module.parameters()):
                width = parameter[0].numel() if parameter.ndim > 1 else 4
                drawn = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(100 + number), dtype=torch.float64
                )
                parameter.copy_((drawn / math.sqrt(width)).bfloat16())
        return module.to(self.device, self.dtype)

    def network(self) -> nn.Module:
        """Five numbers in, three out."""
        return self.filled(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))

    def convolutional(self) -> nn.Module:
        """Two channels of 6 x 5 pixels in, three numbers out."""
        layers = [nn.Conv2d(2, 3, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(18, 3)]
        return self.filled(nn.Sequential(*layers))

    def batch(self) -> tuple[Tensor, Tensor]:
        """Seven samples for `network`."""
        return self.tensor(7, 5, seed=1), self.integers(3, 7, seed=2)

    def images(self) -> tuple[Tensor, Tensor]:
        """Four samples for `convolutional`."""
        return self.tensor(4, 2, 6, 5, seed=3), self.integers(3, 4, seed=4)

    def vector(self, A: LinearOperator, *, seed: int = 5) -> Any:
        """A vector of the operator's space."""
        return A.in_space.rebuild([self.tensor(*shape, seed=seed + i) for i, shape in enumerate(A.in_space.shapes)])

    def matrix(self, rows: int, columns: int, *, seed: int = 6) -> LinearOperator:
        """A dense operator."""
        return hesse.operators.Dense(self.tensor(rows, columns, seed=seed))

    def positive(self, size: int = 4) -> LinearOperator:
        """A positive definite dense operator with eigenvalues that are far apart."""
        x = self.tensor(size, size, seed=7)
        ones = torch.arange(1, size + 1, dtype=self.dtype, device=self.device)
        small = ((x + x.T) / 16).bfloat16().to(self.dtype)
        tags = frozenset({hesse.Tag.SYMMETRIC, hesse.Tag.HERMITIAN, hesse.Tag.PSD})
        return hesse.operators.Dense(small + torch.diag(2 * ones), tags=tags)


PRECISIONS = {
    "float64": (torch.float64, False),
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "autocast": (torch.float32, True),
}
ROUNDING = {"float64": 1e-8, "float32": 2e-3, "bfloat16": 0.15, "autocast": 0.15}
"""The part of the largest number in a result by which its numbers may differ from those of float64 on the CPU."""
