"""hesse: every derivative of a PyTorch program beyond the plain gradient; exact, fast, checked.

Everything public stands here. Jacobians, Hessians, per-sample gradients, Fisher and Gauss-Newton matrices are values of one
kind, a `LinearOperator` between spaces of named trees, of which one asks questions (`dense`, `trace`, `solve`, ...).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hesse import debug, nn, operators
from hesse.autodiff import Linearization, compile_products, compiling, custom_vjp, functional, hessian_operator, linearize
from hesse.check import (
    CheckReport,
    WrongDerivativeError,
    assert_derivatives,
    assert_module,
    assert_operator,
    check_derivatives,
    check_module,
    check_operator,
)
from hesse.convolutions import ConditionWarning, TruncationWarning, convolution
from hesse.core.errors import HesseError
from hesse.core.memory import memory
from hesse.core.progress import progress
from hesse.core.space import Space
from hesse.curvature import (
    KroneckerFactored,
    activation_hessian,
    diagonal_by_sample,
    ekfac,
    fisher,
    ggn,
    input_hessian,
    kfac,
    loss_hessian,
    output_hessian,
    propagated_diagonal,
)
from hesse.debug import find_nonfinite, trace_graph, watch_nonfinite
from hesse.derivatives import (
    DivergenceResult,
    GradResult,
    HessianResult,
    Information,
    InformationWarning,
    JacobianResult,
    LaplacianResult,
    divergence,
    fisher_information,
    grad,
    hessian,
    jacobian,
    laplacian,
)
from hesse.linalg import (
    DiagonalEstimate,
    Eigen,
    Estimate,
    Factorization,
    Rank,
    SignLog,
    Solution,
    Spectrum,
    Svd,
    condition,
    deflation,
    dense,
    diagonal,
    effective_dimension,
    eigsh,
    factor,
    function_trace,
    jacobi,
    logdet,
    low_rank_plus_diagonal,
    lstsq,
    norm,
    null_space,
    nystrom,
    pinv,
    rank,
    slogdet,
    solve,
    spectrum,
    squared_norm,
    svd,
    trace,
)
from hesse.nn import optim
from hesse.operators import LinearOperator, Tag, average, block_diagonal, identity, load, restrict, save
from hesse.operators.projections import random_projection
from hesse.parameters import (
    DataJacobian,
    GramPlan,
    ParameterJacobian,
    StoredMatrix,
    TangentKernel,
    compile_rows,
    ntk,
    open_zarr,
    parameter_jacobian,
)
from hesse.rules.losses import GaussianNLL

if TYPE_CHECKING:
    from hesse import distributed
    from hesse.sparse import (
        ColoredPattern,
        Pattern,
        SparseDerivative,
        SparseHessian,
        SparseJacobian,
        Sparsity,
        coloring,
        prepare_hessian,
        prepare_jacobian,
        sparsity,
    )

__version__ = "0.1.0.dev0"

__all__ = [
    "CheckReport",
    "ColoredPattern",
    "ConditionWarning",
    "DataJacobian",
    "DiagonalEstimate",
    "DivergenceResult",
    "Eigen",
    "Estimate",
    "Factorization",
    "GaussianNLL",
    "GradResult",
    "GramPlan",
    "HesseError",
    "HessianResult",
    "Information",
    "InformationWarning",
    "JacobianResult",
    "KroneckerFactored",
    "LaplacianResult",
    "LinearOperator",
    "Linearization",
    "ParameterJacobian",
    "Pattern",
    "Rank",
    "SignLog",
    "Solution",
    "Space",
    "SparseDerivative",
    "SparseHessian",
    "SparseJacobian",
    "Sparsity",
    "Spectrum",
    "StoredMatrix",
    "Svd",
    "Tag",
    "TangentKernel",
    "TruncationWarning",
    "WrongDerivativeError",
    "activation_hessian",
    "assert_derivatives",
    "assert_module",
    "assert_operator",
    "average",
    "block_diagonal",
    "check_derivatives",
    "check_module",
    "check_operator",
    "coloring",
    "compile_products",
    "compile_rows",
    "compiling",
    "condition",
    "convolution",
    "custom_vjp",
    "debug",
    "deflation",
    "dense",
    "diagonal",
    "diagonal_by_sample",
    "distributed",
    "divergence",
    "effective_dimension",
    "eigsh",
    "ekfac",
    "factor",
    "find_nonfinite",
    "fisher",
    "fisher_information",
    "function_trace",
    "functional",
    "ggn",
    "grad",
    "hessian",
    "hessian_operator",
    "identity",
    "input_hessian",
    "jacobi",
    "jacobian",
    "kfac",
    "laplacian",
    "linearize",
    "load",
    "logdet",
    "loss_hessian",
    "low_rank_plus_diagonal",
    "lstsq",
    "memory",
    "nn",
    "norm",
    "ntk",
    "null_space",
    "nystrom",
    "open_zarr",
    "operators",
    "optim",
    "output_hessian",
    "parameter_jacobian",
    "pinv",
    "prepare_hessian",
    "prepare_jacobian",
    "progress",
    "propagated_diagonal",
    "random_projection",
    "rank",
    "restrict",
    "save",
    "slogdet",
    "solve",
    "sparsity",
    "spectrum",
    "squared_norm",
    "svd",
    "trace",
    "trace_graph",
    "watch_nonfinite",
]

_LATER = frozenset(__all__) - frozenset(globals())


def __getattr__(name: str) -> Any:
    """At their first use: sparse derivatives, whose SciPy takes longer to import than all of hesse, and `hesse.distributed`."""
    if name not in _LATER:
        raise AttributeError(f"module 'hesse' has no attribute '{name}'")
    if name == "distributed":
        return import_module("hesse.distributed")
    from hesse import sparse

    return getattr(sparse, name)


def __dir__() -> list[str]:
    """Everything public."""
    return sorted({*globals(), *__all__})
