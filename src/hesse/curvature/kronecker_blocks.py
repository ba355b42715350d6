"""Blocks of a Kronecker-factored matrix: products of two small factors, and the same in the basis of their eigenvectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from hesse.core.errors import NonFiniteError, SymmetryError

Kind = Literal["kronecker", "exact", "blocks", "diagonal"]
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class FactorBlock:
    """``left[G] (x) right[G]`` for the groups G of one parameter, viewed as ``[G, a, b]``.

    Attributes:
        left: ``[G, a, a]``, or ``[G, a]`` for a diagonal.
        right: ``[G, b, b]``, or ``[G, b]``.
        kind: "kronecker"; "exact": the parameter's matrix itself (left is one); "blocks": that of every output channel (left is
            one in every group); "diagonal": its diagonal (right is one).
    """

    left: Tensor
    right: Tensor
    kind: Kind

    @property
    def sizes(self) -> tuple[int, int, int]:
        """``G, a, b``."""
        return self.left.shape[0], self.left.shape[-1], self.right.shape[-1]

    def apply(self, V: Tensor) -> Tensor:
        """The product with the rows of ``[k, G a b]``."""
        return _multiply(self.left, self.right, V)

    def diagonal(self) -> Tensor:
        """``[G a b]``."""
        return (_diagonal(self.left).unsqueeze(2) * _diagonal(self.right).unsqueeze(1)).flatten()

    def dense(self) -> Tensor:
        """``[G a b, G a b]``."""
        pairs = zip(_full(self.left), _full(self.right), strict=True)
        return torch.block_diag(*(torch.kron(a.contiguous(), b.contiguous()) for a, b in pairs))

    @cached_property
    def eigen(self) -> EigenBlock:
        """The same block by the eigenvectors of its factors."""
        (left, P), (right, Q) = _eigen(self.left), _eigen(self.right)
        return EigenBlock(P, Q, left.unsqueeze(2) * right.unsqueeze(1), self.kind)

    def damped(self, damping: float) -> FactorBlock:
        """Heuristic damping (Martens, Grosse 2015, section 6.3): ``(left + pi sqrt(c)) (x) (right + sqrt(c) / pi)`` with pi the
        root of the ratio of the factors' mean eigenvalues; exact for blocks that are no products."""
        if self.kind != "kronecker":
            one_left = self.kind != "diagonal"
            return replace(self, **{"right" if one_left else "left": _shift(self.right if one_left else self.left, damping)})
        means = [_diagonal(side).mean(1) for side in (self.left, self.right)]
        tiny = torch.finfo(means[0].dtype).tiny
        pi = (means[0].clamp(min=tiny) / means[1].clamp(min=tiny)).sqrt()
        return FactorBlock(_shift(self.left, pi * damping**0.5), _shift(self.right, damping**0.5 / pi), self.kind)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved."""
        return {"left": self.left, "right": self.right}


@dataclass(frozen=True, eq=False)
class EigenBlock:
    """``(P (x) Q) diag(values) (P (x) Q)^T`` in every group.

    Attributes:
        left: P, orthogonal, ``[G, a, a]``; ``[G, 0]`` stands for the identity.
        right: Q, ``[G, b, b]`` or ``[G, 0]``.
        values: ``[G, a, b]``.
        kind: as for `FactorBlock`.
    """

    left: Tensor
    right: Tensor
    values: Tensor
    kind: Kind

    @property
    def sizes(self) -> tuple[int, int, int]:
        """``G, a, b``."""
        return self.values.shape[0], self.values.shape[1], self.values.shape[2]

    @property
    def eigen(self) -> EigenBlock:
        """Itself."""
        return self

    def rotate(self, V: Tensor) -> Tensor:
        """Rows ``[k, G a b]`` in the eigenbasis, ``[k, G, a, b]``."""
        X = V.reshape(len(V), *self.sizes)
        X = self.left.mT @ X if self.left.ndim == 3 else X
        return X @ self.right if self.right.ndim == 3 else X

    def apply(self, V: Tensor) -> Tensor:
        """The product with the rows of ``[k, G a b]``."""
        X = self.rotate(V) * self.values
        X = self.left @ X if self.left.ndim == 3 else X
        return (X @ self.right.mT if self.right.ndim == 3 else X).flatten(1)

    def map(self, f: Map) -> EigenBlock:
        """The function f of the block, by its eigenvalues."""
        return replace(self, values=f(self.values))

    def diagonal(self) -> Tensor:
        """``[G a b]``."""
        X = self.left.square() @ self.values if self.left.ndim == 3 else self.values
        return (X @ self.right.square().mT if self.right.ndim == 3 else X).flatten()

    def dense(self) -> Tensor:
        """``[G a b, G a b]``."""
        size = self.values.numel()
        return self.apply(torch.eye(size, dtype=self.values.dtype, device=self.values.device)).mT

    def damped(self, damping: float) -> EigenBlock:
        """``block + damping``."""
        return self.map(lambda values: values + damping)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved."""
        return {"left": self.left, "right": self.right, "values": self.values}


Block = FactorBlock | EigenBlock


def _multiply(left: Tensor, right: Tensor, V: Tensor) -> Tensor:
    X = V.reshape(len(V), left.shape[0], left.shape[-1], right.shape[-1])
    X = left @ X if left.ndim == 3 else left.unsqueeze(2) * X
    X = X @ right.mT if right.ndim == 3 else X * right.unsqueeze(1)
    return X.flatten(1)


def _diagonal(side: Tensor) -> Tensor:
    return side.diagonal(dim1=1, dim2=2) if side.ndim == 3 else side


def _full(side: Tensor) -> Tensor:
    return side if side.ndim == 3 else torch.diag_embed(side)


def _shift(side: Tensor, by: Tensor | float) -> Tensor:
    by = torch.as_tensor(by, dtype=side.dtype, device=side.device).expand(len(side))
    if side.ndim == 2:
        return side + by.unsqueeze(1)
    return side + torch.diag_embed(by.unsqueeze(1).expand(side.shape[:2]))


def _eigen(side: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[G, a]`` (negative ones, which are rounding, set to zero) and eigenvectors; ``[G, 0]`` for a diagonal."""
    if side.ndim == 2:
        return side, side.new_zeros(len(side), 0)
    values, vectors = _eigh(side)
    slack = 64 * torch.finfo(side.dtype).eps * values.shape[1] * values.abs().amax(1, keepdim=True)
    if bool((values < -slack).any()):
        raise SymmetryError(
            "A Kronecker factor is a second moment, which has no negative eigenvalue.",
            f"{float(values.min()):.3g} beside {float(values.max()):.3g}",
            "use factors that kfac made, or add damping",
        )
    return values.clamp(min=0), vectors


def _eigh(side: Tensor) -> tuple[Tensor, Tensor]:
    """In double precision where single precision fails: LAPACK's float32 method returns NaN for some singular matrices.

    Raises:
        NonFiniteError: the matrix has a NaN or an infinity.
    """
    if not bool(side.isfinite().all()):
        raise NonFiniteError(
            "Kronecker factors are finite.", "NaN or infinity in a second moment", "scale the model's outputs, or use float64"
        )
    try:
        values, vectors = torch.linalg.eigh(side)
        if bool(values.isfinite().all() and vectors.isfinite().all()):
            return values, vectors
    except torch.linalg.LinAlgError:
        pass
    values, vectors = torch.linalg.eigh(side.double())
    return values.to(side.dtype), vectors.to(side.dtype)
