"""SciPy's linear operators as hesse's, so that the same laws can be asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.operators import LinearOperator
from hesse.operators.base import flat_space


class ForeignOperator(LinearOperator):
    """An object with `shape`, `dtype`, `matvec` and `matmat` on NumPy arrays; its transpose conjugates `rmatvec`, the adjoint.

    Arrays share memory with the vectors given, so that an operator that writes into its input is seen to do so.

    Args:
        origin: the object.
        adjoint: whether this is its transpose.
    """

    def __init__(self, origin: Any, *, adjoint: bool = False) -> None:
        self.origin, self._adjoint = origin, adjoint
        dtype = _torch_dtype(origin)
        out, into = (flat_space(int(size), dtype) for size in origin.shape)
        self.in_space, self.out_space = (out, into) if adjoint else (into, out)

    def mv(self, v: Tensor) -> Tensor:
        return self._apply(self.origin.rmatvec if self._adjoint else self.origin.matvec, v)

    def mm(self, V: Tensor) -> Tensor:
        if not len(V):  # SciPy's own blocks have a column at least
            return self.out_space.zeros(0)
        return self._apply(self.origin.rmatmat if self._adjoint else self.origin.matmat, V.mT).mT

    def transpose(self) -> LinearOperator:
        return ForeignOperator(self.origin, adjoint=not self._adjoint)

    def _apply(self, product: Callable[[Any], Any], array: Tensor) -> Tensor:
        conjugate = self._adjoint and array.is_complex()
        result = torch.from_numpy(np.asarray(product((array.conj() if conjugate else array).resolve_conj().numpy())))
        return result.conj().resolve_conj() if conjugate else result

    def __repr__(self) -> str:
        return f"{type(self.origin).__name__}({self.shape[0]} x {self.shape[1]})"


def as_operator(A: Any) -> LinearOperator:
    """An operator of hesse, or one of SciPy's made into one.

    Args:
        A: a `LinearOperator` of hesse or of SciPy (anything with `shape`, `matvec`, `matmat` and `dtype`).

    Raises:
        StructureError: anything else.
    """
    if isinstance(A, LinearOperator):
        return A
    if all(hasattr(A, name) for name in ("shape", "dtype", "matvec", "matmat", "rmatvec", "rmatmat")):
        return ForeignOperator(A)
    raise StructureError("check_operator takes a LinearOperator of hesse or of SciPy.", type(A).__name__, _remedy(A))


def has_adjoint(A: LinearOperator) -> bool:
    """Whether the products with the adjoint that SciPy allows to leave out are there.

    Args:
        A: the operator.
    """
    if not isinstance(A, ForeignOperator):
        return True
    try:
        A.transpose().mv(torch.zeros(A.out_space.dim, dtype=A.out_space.dtype))
    except (NotImplementedError, TypeError):
        return False
    except Exception:  # there is one, and the laws of it will say that it raises
        return True
    return True


def _torch_dtype(origin: Any) -> torch.dtype:
    kind = np.dtype(np.float64 if origin.dtype is None else origin.dtype)
    if kind.kind not in "fc":
        return torch.float64
    return torch.from_numpy(np.zeros((), dtype=kind)).dtype


def _remedy(A: Any) -> str:
    if isinstance(A, torch.nn.Module):
        return "check a module with hesse.check_module(module, *inputs)"
    if hasattr(A, "tocsr"):
        return "scipy.sparse.linalg.aslinearoperator(A) makes an operator of a sparse array"
    if isinstance(A, (Tensor, np.ndarray)):
        return "hesse.operators.Dense(matrix) makes an operator of a matrix"
    if isinstance(A, tuple) and all(callable(part) for part in A):
        return "a pair of functions has no spaces: hesse.operators.Function(in_space, out_space, mv, rmv) has"
    if callable(A):
        return "hesse.linearize(f, x).jacobian is the derivative of a function; hesse.check_derivatives(f, x) checks it"
    return "write a class with mv and transpose, derived from hesse.LinearOperator"
