"""`Information`: an information matrix with names, standard errors and the directions that data leave open."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hesse.core.errors import SymmetryError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import Tag
from hesse.operators.dense import Dense

_ROWS_SHOWN = 24


class InformationWarning(RuntimeWarning):
    """An information matrix is ill-conditioned or not positive definite."""


@dataclass(frozen=True, eq=False, repr=False)
class Information:
    """The information matrix of a log-likelihood at a point; made by `fisher_information`.

    Attributes:
        kind: "observed", "expected" or "empirical".
        matrix: ``[d, d]``, in the order of `names`.
        theta: the point.
        space: the space of theta.
        monte_carlo_error: ``[d, d]``, one standard deviation of each entry of an expected information; None otherwise.
    """

    kind: str
    matrix: Tensor
    theta: Tree
    space: Space
    monte_carlo_error: Tensor | None = None

    @cached_property
    def names(self) -> list[str]:
        """One name a scalar coordinate: ``"mu"``, ``"beta[2]"``, ``"weight[0,3]"``; a bare tensor is called theta."""
        found = []
        for name, shape in zip(self.space.names, self.space.shapes, strict=True):
            places = itertools.product(*map(range, shape)) if shape else [()]
            found += [(name or "theta") + (f"[{','.join(map(str, place))}]" if place else "") for place in places]
        return found

    @property
    def covariance(self) -> Tensor:
        """``[d, d]``: the inverse of the matrix, the large-sample covariance of the maximum-likelihood estimate.

        Raises:
            SymmetryError: the matrix is not positive definite; names the parameters in that direction.
        """
        self._require_definite()
        scale = self._scale()
        lower = torch.linalg.cholesky(self.matrix / torch.outer(scale, scale))
        return torch.cholesky_inverse(lower) / torch.outer(scale, scale)

    @property
    def standard_errors(self) -> Tree:
        """A tree like theta: square roots of the covariance's diagonal.

        Raises:
            SymmetryError: the matrix is not positive definite; names the parameters in that direction.
        """
        return self.space.unravel(self.covariance.diagonal().sqrt())

    @property
    def correlation(self) -> Tensor:
        """``[d, d]``: the covariance with unit diagonal.

        Raises:
            SymmetryError: the matrix is not positive definite; names the parameters in that direction.
        """
        covariance = self.covariance
        errors = covariance.diagonal().sqrt()
        return covariance / torch.outer(errors, errors)

    @cached_property
    def condition(self) -> float:
        """The condition number (2-norm) of the matrix scaled to unit diagonal: it does not depend on the parameters' units."""
        values = self._eigen[0].abs()
        return float(values.max() / values.min()) if len(values) else 1.0

    @property
    def operator(self) -> Dense:
        """The matrix as an operator on trees like theta."""
        tags = {Tag.SYMMETRIC, Tag.HERMITIAN} | ({Tag.PSD} if self.kind == "empirical" else set())
        return Dense(self.matrix, self.space, self.space, frozenset(tags))

    def problem(self) -> str:
        """What is wrong with the matrix, with the parameters in that direction; "" if nothing is."""
        values = self._eigen[0]
        if not bool(torch.isfinite(values).all()):
            return "not finite"
        if not self._is_definite():
            return f"not positive definite: no information about {self._directions(int((values <= self._floor()).sum()))}"
        if self.condition**2 * torch.finfo(values.dtype).eps > 1:
            return f"ill-conditioned (condition number {self.condition:.1e}): little information about {self._directions(1)}"
        return ""

    def _require_definite(self) -> None:
        if not self._is_definite():
            raise SymmetryError(
                "Standard errors need a positive definite information matrix.",
                self.problem(),
                "hold parameters in that direction fixed, add data or a prior, or evaluate at the maximum of the likelihood",
            )

    def _floor(self) -> Tensor:
        values = self._eigen[0]
        return len(values) * torch.finfo(values.dtype).eps * values[-1].abs()

    def _is_definite(self) -> bool:
        values = self._eigen[0]
        return not len(values) or bool(values[0] > self._floor())

    def _scale(self) -> Tensor:
        diagonal = self.matrix.diagonal()
        return torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).sqrt()

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of the matrix scaled to unit diagonal; NaN where it is not finite."""
        matrix = self.matrix.detach()
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        scale = self._scale().detach().to(matrix.dtype)
        scaled = matrix / torch.outer(scale, scale)
        if not bool(torch.isfinite(scaled).all()):
            return torch.full_like(scale, torch.nan), torch.full_like(scaled, torch.nan)
        return torch.linalg.eigh(scaled)

    def _directions(self, count: int) -> str:
        """The directions of the smallest eigenvalues as text: ``0.71 a - 0.71 b``."""
        shown = "; ".join(self._direction(i) for i in range(min(count, 3)))
        return shown + (f"; and {count - 3} more directions" if count > 3 else "")

    def _direction(self, which: int) -> str:
        weight = self._eigen[1][:, which]
        order = weight.abs().argsort(descending=True, stable=True).tolist()
        order = [i for i in order if abs(weight[i]) >= 0.05 * abs(weight[order[0]])]
        vector = weight / self._scale().detach()
        vector = (vector / vector.norm() * vector[order[0]].sign()).tolist()
        parts = [f"{'-' if vector[i] < 0 else '+'} {abs(vector[i]):.2g} {self.names[i]}" for i in order[:4]]
        return " ".join(parts).removeprefix("+ ") + (f" and {len(order) - 4} more" if len(order) > 4 else "")

    def __repr__(self) -> str:
        problem = self.problem()
        head = f"Information({self.kind}, {len(self.names)} x {len(self.names)}, condition {self.condition:.2g})"
        values = self.space.ravel(self.theta).detach().tolist()
        errors = [f"{e:.4g}" for e in self.covariance.detach().diagonal().sqrt().tolist()] if self._is_definite() else []
        shown = self.names[:_ROWS_SHOWN]
        rows = [("name", "estimate", "standard error")]
        rows += [
            (n, f"{v:.6g}", e)
            for n, v, e in itertools.zip_longest(shown, values[:_ROWS_SHOWN], errors[:_ROWS_SHOWN], fillvalue="-")
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"  {n:<{widths[0]}}  {v:>{widths[1]}}  {e:>{widths[2]}}" for n, v, e in rows]
        if len(shown) < len(self.names):
            lines.append(f"  ... {len(self.names) - len(shown)} more")
        return "\n".join([head, *lines, *([f"  {problem}"] if problem else [])])
