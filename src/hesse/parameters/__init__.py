"""The parameter Jacobian: contractions over the forms that capture finds."""

from hesse.parameters.jacobian import ParameterJacobian
from hesse.parameters.make import parameter_jacobian

__all__ = ["ParameterJacobian", "parameter_jacobian"]
