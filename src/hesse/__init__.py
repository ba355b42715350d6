"""hesse: every derivative of a PyTorch program beyond the plain gradient; exact, fast, checked.

Everything public stands here. Jacobians, Hessians, per-sample gradients, Fisher and Gauss-Newton matrices are values of one
kind, a `LinearOperator` between spaces of named trees, of which one asks questions (`dense`, `trace`, `solve`, ...).
"""

from hesse import operators
from hesse.autodiff import Linearization, functional, hessian_operator, linearize
from hesse.core.errors import HesseError
from hesse.core.memory import memory
from hesse.core.progress import progress
from hesse.core.space import Space
from hesse.curvature import fisher, ggn, loss_hessian
from hesse.derivatives import HessianResult, JacobianResult, LaplacianResult, hessian, jacobian, laplacian
from hesse.linalg import Eigen, Estimate, Solution, dense, diagonal, eigsh, norm, solve, trace
from hesse.operators import LinearOperator, Tag, average, identity
from hesse.parameters import ParameterJacobian, TangentKernel, ntk, parameter_jacobian

__version__ = "0.1.0.dev0"

__all__ = [
    "Eigen",
    "Estimate",
    "HesseError",
    "HessianResult",
    "JacobianResult",
    "LaplacianResult",
    "LinearOperator",
    "Linearization",
    "ParameterJacobian",
    "Solution",
    "Space",
    "Tag",
    "TangentKernel",
    "average",
    "dense",
    "diagonal",
    "eigsh",
    "fisher",
    "functional",
    "ggn",
    "hessian",
    "hessian_operator",
    "identity",
    "jacobian",
    "laplacian",
    "linearize",
    "loss_hessian",
    "memory",
    "norm",
    "ntk",
    "operators",
    "parameter_jacobian",
    "progress",
    "solve",
    "trace",
]
