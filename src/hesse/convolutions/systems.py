"""Factored systems and their iterative refinement: the solver inside of the boundary method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from hesse.convolutions.augmented import AugmentedSystem
from hesse.convolutions.operator import Convolution
from hesse.convolutions.square import SquareSystem
from hesse.linalg.products import row_norms
from hesse.linalg.solution import largest_ratio

_STEPS = 12
_FEW_STEPS = 4
_ENOUGH = 4  # roundings that a correction may have left


class Refined(NamedTuple):
    """Images, and the steps of refinement that they took."""

    value: Tensor
    steps: int


class System(ABC):
    """Answers systems with a convolution whose nearly null vectors have been taken out of the right-hand side."""

    size: int
    d: float = 0.0

    @abstractmethod
    def solve(self, Y: Tensor, adjoint: bool, without: Tensor) -> Refined:
        """``A⁺ y`` or ``A⁺ᴴ x``, as if the convolution mapped some vectors to nothing.

        Args:
            Y: ``[k, *shape]``.
            adjoint: which.
            without: ``[p, *shape]``, orthonormal singular vectors on the shorter side of the convolution.
        """

    @abstractmethod
    def small_first(self, V: Tensor) -> Tensor:
        """A function of ``B^H B`` (B is the convolution, or its adjoint if it is wide) that is large where it is small."""


class Direct(System):
    """A square convolution by `SquareSystem`."""

    def __init__(self, A: Convolution, system: SquareSystem) -> None:
        self.A, self.system, self.size = A, system, system.size

    def solve(self, Y: Tensor, adjoint: bool, without: Tensor) -> Refined:
        B = self.A.H if adjoint else self.A
        x = self.system.solve(Y, adjoint=adjoint)
        size, eps, last = row_norms(Y.flatten(1)), torch.finfo(Y.dtype).eps, float("inf")
        steps = 0
        while True:
            rest = Y - B @ x
            missed = largest_ratio(row_norms(rest.flatten(1)), row_norms(x.flatten(1)) + size)
            if missed <= _ENOUGH * eps or not missed < last / 2 or steps == _FEW_STEPS:
                return Refined(x, steps)
            x, last, steps = x + self.system.solve(rest, adjoint=adjoint), missed, steps + 1

    def small_first(self, V: Tensor) -> Tensor:
        return self.system.solve(self.system.solve(V, adjoint=True))


class Augmented(System):
    """Any convolution by `AugmentedSystem`, whose regularization is refined away.

    A tall one by ``[I A; A^H 0]`` (least squares), a wide one by ``[0 A; A^H -d^2 I]`` (least norm): the factors of ``[I A; A^H
    -d^2 I]`` precondition both, and a singular value s converges by ``d^2 / (s^2 + d^2)`` a step (iterated Tikhonov
    regularization: Riley 1955).
    """

    def __init__(self, A: Convolution, d: float) -> None:
        self.A, self.d, self.system = A, d, AugmentedSystem(A, d)
        self.size = self.system.size
        self.is_wide = A.shape[0] < A.shape[1]

    def solve(self, Y: Tensor, adjoint: bool, without: Tensor) -> Refined:
        A, AH = self.A, self.A.H
        top, bottom = (0.0, self.d**2) if self.is_wide else (1.0, 0.0)
        g, k = A.geometry, len(Y)

        def solved(f: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            if not len(without):
                return self.system.solve(f, h)
            if self.is_wide:
                r, x = self.system.solve(f - project(f, without), h)
                return r - project(r, without), x
            r, x = self.system.solve(f, h - project(h, without))
            return r, x - project(x, without)

        f = Y.new_zeros(k, *g.out_shape) if adjoint else Y
        h = -Y if adjoint else Y.new_zeros(k, *g.in_shape)
        r, x = solved(f, h)
        steps, last = 0, float("inf")
        while steps < _STEPS:
            dr, dx = solved(f - top * r - A @ x, h - AH @ r + bottom * x)
            changed = largest_change(dr if adjoint else dx, r if adjoint else x)
            steps += 1
            if not changed < last:
                break
            r, x, last = r + dr, x + dx, changed
            if changed <= _ENOUGH * torch.finfo(Y.dtype).eps:
                break
        return Refined(-r if adjoint else x, steps)

    def small_first(self, V: Tensor) -> Tensor:
        """``(B^H B + d^2)^-1 v``, refined once."""
        A, AH, d2 = self.A, self.A.H, self.d**2
        g, k = A.geometry, len(V)
        f = V / d2 if self.is_wide else V.new_zeros(k, *g.out_shape)
        h = V.new_zeros(k, *g.in_shape) if self.is_wide else -V
        r, x = self.system.solve(f, h)
        dr, dx = self.system.solve(f - r - A @ x, h - AH @ r + d2 * x)
        return r + dr if self.is_wide else x + dx


def project(images: Tensor, basis: Tensor, onto: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """``sum_j onto_j weight_j <basis_j, image>``; by default the part of images ``[k, ...]`` in the span of the basis."""
    inner = images.flatten(1) @ basis.flatten(1).mH
    inner = inner if weights is None else inner * weights
    onto = basis if onto is None else onto
    return (inner @ onto.flatten(1)).reshape(len(images), *onto.shape[1:])


def largest_change(part: Tensor, whole: Tensor) -> float:
    """The largest ``|part| / |whole|`` of the images, 0 / 0 counting as 0."""
    return largest_ratio(row_norms(part.flatten(1)), row_norms(whole.flatten(1)))
