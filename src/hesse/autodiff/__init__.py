"""Calculus: the only folder that calls autograd. Linearization, second order, and the capture of parameter uses."""

from hesse.autodiff.compiled.compile_products import compile_products
from hesse.autodiff.compiled.mode import compiling
from hesse.autodiff.custom import custom_vjp
from hesse.autodiff.functional import functional
from hesse.autodiff.linearize import Linearization, linearize
from hesse.autodiff.second_order import hessian_operator

__all__ = [
    "Linearization",
    "compile_products",
    "compiling",
    "custom_vjp",
    "functional",
    "hessian_operator",
    "linearize",
]
