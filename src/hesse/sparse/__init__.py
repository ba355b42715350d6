"""Sparse derivatives: where entries can be, which columns share a product, and the entries from the products."""

from hesse.sparse.colored import ColoredPattern
from hesse.sparse.coloring import coloring
from hesse.sparse.detect import Sparsity, sparsity
from hesse.sparse.pattern import Pattern
from hesse.sparse.prepare import prepare_hessian, prepare_jacobian
from hesse.sparse.prepared import SparseDerivative, SparseHessian, SparseJacobian

__all__ = [
    "ColoredPattern",
    "Pattern",
    "SparseDerivative",
    "SparseHessian",
    "SparseJacobian",
    "Sparsity",
    "coloring",
    "prepare_hessian",
    "prepare_jacobian",
    "sparsity",
]
