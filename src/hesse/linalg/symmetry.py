"""Products with an operator that is said to equal its adjoint, which the first of them finds out."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core import random
from hesse.core.batching import slices
from hesse.core.errors import SymmetryError
from hesse.linalg.options import rounding
from hesse.linalg.products import apply, normal_vectors, row_norms
from hesse.operators import LinearOperator

_SEED = 1933  # not the default one, which a right-hand side may have been drawn with: <u, A u> shows nothing
_AT_ONCE = 2**16  # numbers that are multiplied at once: they stay in the caches, and no block is held again


def inner(a: Tensor, b: Tensor) -> Tensor:
    """``Re a^H b`` of each row."""
    count = max(_AT_ONCE // max(a.shape[-1], 1), 1)
    if len(a) > count:
        return torch.cat([inner(a[part], b[part]) for part in slices(len(a), count)])
    product = (a.conj() * b).sum(-1)
    return product.real if product.is_complex() else product


def tolerance(A: LinearOperator) -> float:
    """Relative mismatch of two inner products above which it is no rounding error: ``4 sqrt(eps)``.

    What the operator passes through inside may be larger than what comes out, and its rounding with it.
    """
    return 4 * rounding(A) ** 0.5


class SymmetricProducts:
    """``V -> A V`` for the rows of V; the first block takes a random vector along and compares ``<u, A v>`` with ``<A u, v>``.

    Args:
        A: an operator tagged Hermitian.
        method: how the error names the method that needs it.

    Cost: one product more than asked for, in the first block.
    """

    def __init__(self, A: LinearOperator, method: str) -> None:
        self.A, self.method, self.is_checked = A, method, False

    def __call__(self, V: Tensor) -> Tensor:
        """``[k, dim]``; raises `SymmetryError` if the first products contradict the tag."""
        if self.is_checked or not V.numel():
            return apply(self.A, V)
        self.is_checked = True
        u = normal_vectors(self.A.in_space, 1, random.make_generator(_SEED)).to(V.dtype)
        products = apply(self.A, torch.cat([V, u]))
        self._compare(u, V, products[-1:], products[:-1])
        return products[:-1]

    def _compare(self, u: Tensor, V: Tensor, Au: Tensor, AV: Tensor) -> None:
        double = torch.complex128 if V.is_complex() else torch.float64
        if V.device.type == "mps":
            double = V.dtype
        parts = list(slices(len(V), max(_AT_ONCE // V.shape[-1], 1)))
        left = torch.cat([AV[part].to(double) @ u[0].conj().to(double) for part in parts])
        right = torch.cat([V[part].to(double) @ Au[0].conj().to(double) for part in parts])
        # the size that <u, A v> has for a random u, and <A u, v> for a random v
        scale = row_norms(AV) + row_norms(Au) * row_norms(V) / V.shape[-1] ** 0.5
        excess = (left - right).abs() - tolerance(self.A) * scale
        worst = int(excess.argmax())
        if float(excess[worst]) > 0:
            raise SymmetryError(
                f"An operator given to {self.method} must equal its adjoint.",
                f"{type(self.A).__name__} of shape {self.A.shape} is tagged so, but <u, A v> = {_show(left[worst])} "
                f"and <A u, v> = {_show(right[worst])} for a random u",
                "drop the tag and use method='lsmr' or 'dense', or mend the operator (hesse.assert_operator)",
            )


def _show(number: Tensor) -> str:
    return f"{number.item():.6g}"
