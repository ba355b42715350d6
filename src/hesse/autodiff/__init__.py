"""Calculus: the only folder that calls autograd. Linearization, second order, and the capture of parameter uses."""

from hesse.autodiff.functional import functional
from hesse.autodiff.linearize import Linearization, linearize
from hesse.autodiff.second_order import hessian_operator

__all__ = ["Linearization", "functional", "hessian_operator", "linearize"]
