"""The ways to invert a convolution. Each makes an inverse, applies it, and tells what it knows about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from benchmarks.convolutions.cases import Case

STEPS = 2_000  # of CGLS; the other iterative ways get as many or stop at what they take for convergence


class Way(ABC):
    """A way, for one case.

    Args:
        case: what is inverted.
        weight: its kernel.
    """

    def __init__(self, case: Case, weight: Tensor) -> None:
        self.case, self.weight = case, weight
        self.about: dict[str, Any] = {}

    @abstractmethod
    def prepare(self) -> None:
        """What is done once for a kernel; nothing for iterative ways."""

    @abstractmethod
    def solve(self, y: Tensor) -> Tensor:
        """Pictures from their convolution."""

    def extras(self) -> dict[str, Any]:
        """Further numbers, each with the seconds that it took; called last."""
        return {}


class Fourier(Way):
    """Divide by the kernel's transform at each frequency, as if the picture went on periodically."""

    def prepare(self) -> None:
        side = self.case.side
        spread = torch.zeros(*self.weight.shape[:2], side, side, dtype=self.weight.dtype)
        spread[..., :3, :3] = self.weight
        symbol = torch.fft.rfft2(spread.roll((-1, -1), (-2, -1))).conj()  # layers correlate
        self.inverse = torch.linalg.pinv(symbol.permute(2, 3, 0, 1))

    def solve(self, y: Tensor) -> Tensor:
        transformed = torch.fft.rfft2(y).permute(2, 3, 1, 0)
        return torch.fft.irfft2((self.inverse @ transformed).permute(3, 2, 0, 1), y.shape[-2:])


class Cgls(Way):
    """Conjugate gradients on the normal equations, in the form of Björck, Elfving and Strakoš (1998)."""

    def prepare(self) -> None:
        self.about["steps"] = STEPS

    def solve(self, y: Tensor) -> Tensor:
        x, r = torch.zeros_like(y), y.clone()
        s = self.case.adjoint(self.weight, r)
        p, gamma = s, s.square().sum()
        for _ in range(STEPS):
            q = self.case.forward(self.weight, p)
            alpha = gamma / q.square().sum()
            x, r = x + alpha * p, r - alpha * q
            s = self.case.adjoint(self.weight, r)
            gamma, last = s.square().sum(), gamma
            if not float(gamma) > 1e-32 * float(last):
                break
            p = s + (gamma / last) * p
        return x


class Scipy(Way):
    """`scipy.sparse.linalg.lsmr` to the tolerances 1e-15, at most 500 steps."""

    def prepare(self) -> None:
        pass

    def solve(self, y: Tensor) -> Tensor:
        from scipy.sparse.linalg import LinearOperator, lsmr

        def product(of: Any) -> Any:
            return lambda v: of(self.weight, torch.from_numpy(v).reshape(y.shape)).numpy().ravel()

        n = y.numel()
        A = LinearOperator((n, n), product(self.case.forward), product(self.case.adjoint), dtype="float64")
        x, _, steps, *_ = lsmr(A, y.numpy().ravel(), atol=1e-15, btol=1e-15, conlim=0, maxiter=500)
        self.about["steps"] = steps
        return torch.from_numpy(x).reshape(y.shape)


class Dense(Way):
    """`torch.linalg.pinv` of the matrix."""

    def prepare(self) -> None:
        n = self.case.channels * self.case.side**2
        units = torch.eye(n, dtype=self.weight.dtype).reshape(n, self.case.channels, self.case.side, self.case.side)
        matrix = self.case.forward(self.weight, units).reshape(n, n).T
        self.inverse = torch.linalg.pinv(matrix, rtol=self.case.rtol) if self.case.rtol else torch.linalg.pinv(matrix)

    def solve(self, y: Tensor) -> Tensor:
        return (y.flatten(1) @ self.inverse.T).reshape(y.shape)


def way(name: str, case: Case, weight: Tensor) -> Way:
    """The way of this name; imports its library and no other."""
    if name in ("hesse", "krylov", "circular"):
        from benchmarks.convolutions.ways_hesse import Hesse

        return Hesse(case, weight, {"krylov": "krylov"}.get(name, "auto"))
    if name.startswith("deepinv"):
        from benchmarks.convolutions.ways_deepinv import Deepinv

        return Deepinv(case, weight, "lsqr" if name == "deepinv_lsqr" else "CG")
    return {"fourier": Fourier, "cgls": Cgls, "scipy": Scipy, "dense": Dense}[name](case, weight)
