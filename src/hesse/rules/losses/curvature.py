"""The second derivative of a loss by the model's output, as a few symmetric forms: one block a sample, roots, random roots.

Roots as in Dangel, Kunstner and Hennig, "BackPACK: packing more into backprop" (ICLR 2020): ``H = sum_k root(k) root(k)^T``
within every sample. Nothing here is larger than the output; 16-bit outputs are computed with in float32.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from hesse.core.errors import StructureError, SymmetryError
from hesse.rules.losses.draws import Uniform, draw_labels, signs


def computing(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a form computes in for outputs of this dtype: 16-bit ones in float32."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


class OutputCurvature(ABC):
    """A symmetric matrix over the elements of an output ``[n, ...]``, block-diagonal over the n samples.

    Attributes:
        shape: of the output.
        dtype: of the output and of all results; what is stored has the dtype ``computing(dtype)``.
        negative: when this loss's curvature has negative eigenvalues, for error messages.
    """

    def __init__(self, shape: torch.Size, dtype: torch.dtype, negative: str) -> None:
        self.shape, self.dtype, self.negative = shape, dtype, negative

    @functools.cached_property
    def is_psd(self) -> bool:
        """Whether no eigenvalue is negative, judged on the values (NaN counts as none: it shows in the results)."""
        return not bool(self._negative().any())

    @property
    def count(self) -> int:
        """The number of roots: one for every element of a sample, in the order of ``output[i].flatten()``, or fewer."""
        return self.shape[1:].numel()

    def mv(self, v: Tensor) -> Tensor:
        """The product with one vector, or with many at once.

        Args:
            v: ``[*lead, *shape]`` with any leading axes.

        Returns:
            Like v, in the output's dtype.

        Raises:
            StructureError: v does not end in the output's axes.
        """
        if v.shape[v.ndim - len(self.shape) :] != self.shape:
            raise StructureError(
                "A loss's curvature multiplies vectors of the output's shape, with any leading axes.",
                f"shape {tuple(v.shape)} for outputs of shape {tuple(self.shape)}",
                "bring the vector into the output's shape",
            )
        return self._mv(v.to(computing(self.dtype))).to(self.dtype)

    def diagonal(self) -> Tensor:
        """The diagonal, like the output."""
        return self._diagonal().to(self.dtype)

    def root(self, k: int) -> Tensor:
        """Root k of every sample, like the output, with ``0 <= k < count``.

        Raises:
            SymmetryError: an eigenvalue is negative.
            StructureError: there is no root k.
        """
        self._require_psd("The roots of a loss's curvature")
        if not 0 <= k < self.count:
            raise StructureError(
                "A loss's curvature has as many roots as the rank that it can have.",
                f"root {k} of {self.count}",
                f"ask for one of 0 to {self.count - 1}",
            )
        return self._root(k).to(self.dtype)

    def roots(self, start: int, stop: int) -> Tensor:
        """Roots `start` to `stop` of every sample, ``[stop - start, *shape]``.

        Raises:
            SymmetryError, StructureError: as `root`.
        """
        return torch.stack([self.root(k) for k in range(start, stop)])

    def sample(self, uniform: Uniform) -> Tensor:
        """A random root s, like the output: ``E[s s^T]`` is this matrix, independent between samples and between positions.

        Args:
            uniform: ``uniform(shape)`` gives numbers in [0, 1) of that shape, on the output's device.

        Raises:
            SymmetryError: an eigenvalue is negative.
        """
        self._require_psd("Random roots of a loss's curvature")
        return self._sample(uniform).to(self.dtype)

    def _require_psd(self, asked: str) -> None:
        if self.is_psd:
            return
        blocks = self._negative().reshape(self.shape[0], -1).any(1)
        raise SymmetryError(
            f"{asked} exist where it has no negative eigenvalue.",
            f"negative eigenvalues for {int(blocks.sum())} of {self.shape[0]} samples: {self.negative}",
            "take products with it instead of roots, or use the loss's expected curvature (its Fisher information), "
            "which has no negative eigenvalue if no sample weight is negative",
        )

    @abstractmethod
    def _negative(self) -> Tensor:
        """``[n, ...]``: true where a block has a negative eigenvalue."""

    @abstractmethod
    def _mv(self, v: Tensor) -> Tensor: ...

    @abstractmethod
    def _diagonal(self) -> Tensor: ...

    @abstractmethod
    def _root(self, k: int) -> Tensor: ...

    @abstractmethod
    def _sample(self, uniform: Uniform) -> Tensor: ...


class Pointwise(OutputCurvature):
    """``diag(weights)``: losses that are a sum of one term an element.

    Args:
        weights: ``[n, ...]``, the second derivative of each element's term.
        dtype: of the output; that of the weights unless given.
        negative: when weights are negative, for error messages.
    """

    def __init__(self, weights: Tensor, *, dtype: torch.dtype | None = None, negative: str = "") -> None:
        super().__init__(weights.shape, dtype or weights.dtype, negative or "weights below 0")
        self.weights = weights.detach().to(computing(self.dtype))

    def _negative(self) -> Tensor:
        return self.weights < 0

    def _mv(self, v: Tensor) -> Tensor:
        return self.weights * v

    def _diagonal(self) -> Tensor:
        return self.weights.clone()

    def _root(self, k: int) -> Tensor:
        flat = self.weights.reshape(self.shape[0], self.count)
        root = torch.zeros_like(flat)
        root[:, k] = flat[:, k].sqrt()
        return root.reshape(self.shape)

    def _sample(self, uniform: Uniform) -> Tensor:
        return self.weights.sqrt() * signs(uniform, self.weights)


class Softmax(OutputCurvature):
    """``scale (diag p - p p^T)`` at every position: categorical losses of logits, never C x C.

    Args:
        probabilities: ``[n, C, ...]``, adding up to 1 along axis 1.
        scale: ``[n, 1, ...]``.
        dtype: of the output; that of the probabilities unless given.
        negative: when scales are negative, for error messages.
    """

    def __init__(self, probabilities: Tensor, scale: Tensor, *, dtype: torch.dtype | None = None, negative: str = "") -> None:
        super().__init__(probabilities.shape, dtype or probabilities.dtype, negative or "scales below 0")
        self.probabilities = probabilities.detach().to(computing(self.dtype))
        self.scale = scale.detach().to(self.probabilities)

    def _negative(self) -> Tensor:
        return self.scale < 0

    def _mv(self, v: Tensor) -> Tensor:
        weighted = self.probabilities * v
        total = weighted.sum(1 - len(self.shape), keepdim=True)
        return weighted.sub_(self.probabilities * total).mul_(self.scale)

    def _diagonal(self) -> Tensor:
        return (1 - self.probabilities).mul_(self.probabilities).mul_(self.scale)

    @property
    def count(self) -> int:
        """C - 1 roots for each of a sample's positions (the matrix has no more rank), one for C = 1."""
        return max(self.shape[1] - 1, 1) * self.shape[2:].numel()

    @functools.cached_property
    def _tails(self) -> Tensor:
        """``[n, C, ...]``: the probability of all later classes."""
        p = self.probabilities.double()
        return (p.flip(1).cumsum(1).flip(1) - p).clamp_(min=0).to(self.probabilities)

    def _root(self, k: int) -> Tensor:
        """Column c of the Cholesky factor at one position, in closed form (Tanabe, Sagae 1992).

        With q the probability of the classes after c: ``sqrt(scale p_c / (p_c + q)) (sqrt(q) e_c - p_i / sqrt(q))`` for i > c.
        """
        n, classes, positions = *self.shape[:2], self.shape[2:].numel()
        c, position = divmod(k, positions)
        flat, tails = (part.reshape(n, classes, positions)[:, :, position] for part in (self.probabilities, self._tails))
        scale = self.scale.reshape(n, 1, positions)[:, :, position]
        p, q = flat[:, c : c + 1], tails[:, c : c + 1]
        size = (scale * p / (p + q)).sqrt().where(q > 0, torch.zeros_like(q))
        root = torch.zeros(n, classes, positions, dtype=flat.dtype, device=flat.device)
        root[:, c, position] = (size * q.sqrt()).squeeze(1)
        root[:, c + 1 :, position] = -flat[:, c + 1 :] * (size / q.sqrt()).where(q > 0, torch.zeros_like(q))
        return root.reshape(self.shape)

    def roots(self, start: int, stop: int) -> Tensor:
        if len(self.shape) != 2 or not 0 <= start < stop <= self.count or self.shape[1] == 1:
            return super().roots(start, stop)
        self._require_psd("The roots of a loss's curvature")
        p, q = self.probabilities, self._tails
        columns = slice(start, stop)
        size = (self.scale * p / (p + q)).sqrt().where(q > 0, torch.zeros_like(q))[:, columns]
        below = (size / q[:, columns].sqrt()).where(q[:, columns] > 0, torch.zeros_like(size))
        place = torch.arange(p.shape[1], device=p.device)
        later = (place > place[columns, None]).to(p.dtype)
        found = (below.mT.unsqueeze(2) * p).mul_(later.unsqueeze(1)).neg_()
        found[torch.arange(stop - start, device=p.device), :, place[columns]] = (size * q[:, columns].sqrt()).mT
        return found.to(self.dtype)

    def _sample(self, uniform: Uniform) -> Tensor:
        """``sqrt(scale) (p - e_y)``: a label y drawn from p, one uniform number a position."""
        label = draw_labels(self.probabilities, uniform((self.shape[0], *self.shape[2:])))
        one = torch.ones((), dtype=self.scale.dtype, device=self.scale.device).expand(label.shape)
        return self.probabilities.scatter_add(1, label, -one).mul_(self.scale.sqrt())
