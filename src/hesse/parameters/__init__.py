"""The parameter Jacobian: contractions over the forms that capture finds."""

from hesse.parameters.jacobian import ParameterJacobian
from hesse.parameters.kernel import TangentKernel, ntk
from hesse.parameters.make import parameter_jacobian

__all__ = ["ParameterJacobian", "TangentKernel", "ntk", "parameter_jacobian"]
