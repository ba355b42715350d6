"""Derivatives of any function of trees, as tensors."""

from hesse.derivatives.divergence import DivergenceResult, divergence
from hesse.derivatives.grad import GradResult, grad
from hesse.derivatives.hessian import HessianResult, LaplacianResult, hessian, laplacian
from hesse.derivatives.information import fisher_information
from hesse.derivatives.information_result import Information, InformationWarning
from hesse.derivatives.jacobian import JacobianResult, jacobian

__all__ = [
    "DivergenceResult",
    "GradResult",
    "HessianResult",
    "Information",
    "InformationWarning",
    "JacobianResult",
    "LaplacianResult",
    "divergence",
    "fisher_information",
    "grad",
    "hessian",
    "jacobian",
    "laplacian",
]
