"""Derivatives of any function of trees, as tensors."""

from hesse.derivatives.divergence import DivergenceResult, divergence
from hesse.derivatives.hessian import HessianResult, LaplacianResult, hessian, laplacian
from hesse.derivatives.information import fisher_information
from hesse.derivatives.information_result import Information, InformationWarning
from hesse.derivatives.jacobian import JacobianResult, jacobian

__all__ = [
    "DivergenceResult",
    "HessianResult",
    "Information",
    "InformationWarning",
    "JacobianResult",
    "LaplacianResult",
    "divergence",
    "fisher_information",
    "hessian",
    "jacobian",
    "laplacian",
]
