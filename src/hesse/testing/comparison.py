"""The error of a broken law, and how two sides of a law are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.core import random
from hesse.core.errors import HesseError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator


class BrokenLawError(HesseError, AssertionError):
    """An operator breaks a law; `laws` names the law, or all that `assert_operator_laws` found broken."""

    def __init__(self, asked: str, found: str = "", remedy: str = "", laws: tuple[str, ...] = ()) -> None:
        super().__init__(asked, found, remedy)
        self.laws = laws

    def __reduce__(self) -> Any:
        return type(self), (self.asked, self.found, self.remedy, self.laws)


def broken(law: str, A: LinearOperator, statement: str, found: str, remedy: str) -> BrokenLawError:
    """The error for one law; `statement` says what should hold."""
    return BrokenLawError(f"Law '{law}' is broken by {A!r}: {statement}.", found, remedy, (law,))


def source_of(generator: torch.Generator | None) -> torch.Generator:
    """The generator given, or hesse's own with its fixed seed."""
    return random.make_generator() if generator is None else generator


def tolerance(A: LinearOperator, rtol: float | None) -> float:
    """`rtol`, or by default ``eps ** 0.65`` of the coarsest leaf: 7e-11 in float64, 3e-5 in float32."""
    if rtol is not None:
        return rtol
    return max(torch.finfo(dtype).eps for dtype in A.in_space.dtypes + A.out_space.dtypes) ** 0.65


def wide(space: Space, vector: Tree, batch_ndim: int = 0) -> Tensor:
    """A vector of a space, flat (``[*batch, dim]``), detached, on the CPU, in float64 or complex128."""
    flat = space.ravel(vector, batch_ndim).detach().cpu()
    return flat.to(torch.complex128 if flat.dtype.is_complex else torch.float64)


def require_close(
    A: LinearOperator,
    law: str,
    statement: str,
    sides: tuple[Tensor, Tensor],
    allowed: float,
    remedy: str,
    scale: Tensor | None = None,
) -> None:
    """Raise unless the two sides agree in norm, relative to `scale` (by default the larger norm)."""
    left, right = sides
    size = torch.maximum(left.norm(), right.norm()) if scale is None else scale
    gap = (left - right).norm()
    relative = 0.0 if gap == 0 else float(gap / size)
    if not relative <= allowed:  # NaN is a difference
        numbers = f"{_numbers(left, right)}; relative difference {relative:.2g} > {allowed:.2g}"
        raise broken(law, A, statement, numbers, remedy)


def _numbers(left: Tensor, right: Tensor) -> str:
    if not left.ndim:
        return f"{left.item():.6g} against {right.item():.6g}"
    index = int((left - right).abs().nan_to_num(torch.inf).argmax())
    return f"{_numbers(left.flatten()[index], right.flatten()[index])} at flat entry {index}"
