"""Curvature matrices of a model and a loss, as operators over one batch or a data set."""

from hesse.curvature.fisher import fisher
from hesse.curvature.ggn import ggn
from hesse.curvature.hessian import loss_hessian

__all__ = ["fisher", "ggn", "loss_hessian"]
