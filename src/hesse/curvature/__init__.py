"""Curvature matrices of a model and a loss, as operators over one batch or a data set."""

from hesse.curvature.by_sample import diagonal_by_sample
from hesse.curvature.ekfac import ekfac
from hesse.curvature.fisher import fisher
from hesse.curvature.gauss_newton import GaussNewton
from hesse.curvature.ggn import ggn
from hesse.curvature.hessian import loss_hessian
from hesse.curvature.input import SampleHessian, activation_hessian, input_hessian
from hesse.curvature.kfac import kfac
from hesse.curvature.kronecker import KroneckerFactored
from hesse.curvature.output import OutputHessian, output_hessian
from hesse.curvature.propagated import propagated_diagonal

__all__ = [
    "GaussNewton",
    "KroneckerFactored",
    "OutputHessian",
    "SampleHessian",
    "activation_hessian",
    "diagonal_by_sample",
    "ekfac",
    "fisher",
    "ggn",
    "input_hessian",
    "kfac",
    "loss_hessian",
    "output_hessian",
    "propagated_diagonal",
]
