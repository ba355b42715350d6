"""Derivatives of any function of trees, as tensors."""

from hesse.derivatives.hessian import HessianResult, LaplacianResult, hessian, laplacian
from hesse.derivatives.jacobian import JacobianResult, jacobian

__all__ = ["HessianResult", "JacobianResult", "LaplacianResult", "hessian", "jacobian", "laplacian"]
