"""Questions asked of a linear operator.

Each question is a plain function with an open rule behind it (``dense_rule``, ``diagonal_rule``, ...): a
generic function over operator types with a correct general fallback. A new operator answers every question
from its two methods, and registers a rule only where it knows better: ``@trace_rule.register(MyOperator)``.
"""

from hesse.linalg import (
    factor_matrix,
    factor_parts,
    factor_questions,
    factor_rules,
    pinv_sparse,
    restriction_rules,
    sparse_rules,
)
from hesse.linalg.answer import Answer
from hesse.linalg.condition import condition, condition_rule
from hesse.linalg.dense import dense, dense_rule
from hesse.linalg.density import Spectrum
from hesse.linalg.diagonal import DiagonalEstimate, diagonal
from hesse.linalg.diagonal_rules import diagonal_rule
from hesse.linalg.effective_dimension import effective_dimension
from hesse.linalg.eigen import Eigen, eigsh, eigsh_rule
from hesse.linalg.eigenvalues import Eigenvalues, eigenvalues_rule
from hesse.linalg.estimate import Estimate
from hesse.linalg.factor import Factorization, factor, factor_rule
from hesse.linalg.function_trace import function_trace
from hesse.linalg.logdet import logdet
from hesse.linalg.logdet_rules import logdet_rule
from hesse.linalg.low_rank_diagonal import low_rank_plus_diagonal
from hesse.linalg.lstsq import lstsq
from hesse.linalg.lstsq_rules import lstsq_rule
from hesse.linalg.norm import norm
from hesse.linalg.norm_rules import norm_rule
from hesse.linalg.null_space import null_space
from hesse.linalg.null_space_rules import null_space_rule
from hesse.linalg.pinv import pinv
from hesse.linalg.pinv_rules import pinv_rule
from hesse.linalg.preconditioner import Deflation, deflation, jacobi, nystrom
from hesse.linalg.rank import rank
from hesse.linalg.rank_rules import Rank, rank_rule, values_rule
from hesse.linalg.slogdet import slogdet
from hesse.linalg.slogdet_rules import SignLog, slogdet_rule
from hesse.linalg.solution import Solution, error_bound
from hesse.linalg.solve import solve
from hesse.linalg.solve_rules import solve_rule
from hesse.linalg.sparse_entries import entries_rule
from hesse.linalg.spectrum import spectrum
from hesse.linalg.squared_norm import squared_norm
from hesse.linalg.sum_rules import shift_rule
from hesse.linalg.svd import Svd, svd
from hesse.linalg.svd_rules import svd_rule
from hesse.linalg.trace import trace
from hesse.linalg.trace_rules import trace_rule
from hesse.linalg.woodbury import congruence_rule, gram_rule

__all__ = [
    "Answer",
    "Deflation",
    "DiagonalEstimate",
    "Eigen",
    "Eigenvalues",
    "Estimate",
    "Factorization",
    "Rank",
    "SignLog",
    "Solution",
    "Spectrum",
    "Svd",
    "condition",
    "condition_rule",
    "congruence_rule",
    "deflation",
    "dense",
    "dense_rule",
    "diagonal",
    "diagonal_rule",
    "effective_dimension",
    "eigenvalues_rule",
    "eigsh",
    "eigsh_rule",
    "entries_rule",
    "error_bound",
    "factor",
    "factor_matrix",
    "factor_parts",
    "factor_questions",
    "factor_rule",
    "factor_rules",
    "function_trace",
    "gram_rule",
    "jacobi",
    "logdet",
    "logdet_rule",
    "low_rank_plus_diagonal",
    "lstsq",
    "lstsq_rule",
    "norm",
    "norm_rule",
    "null_space",
    "null_space_rule",
    "nystrom",
    "pinv",
    "pinv_rule",
    "pinv_sparse",
    "rank",
    "rank_rule",
    "restriction_rules",
    "shift_rule",
    "slogdet",
    "slogdet_rule",
    "solve",
    "solve_rule",
    "sparse_rules",
    "spectrum",
    "squared_norm",
    "svd",
    "svd_rule",
    "trace",
    "trace_rule",
    "values_rule",
]
