"""Questions asked of a linear operator.

Each question is a plain function with an open rule behind it (``dense_rule``, ``diagonal_rule``, ...): a
generic function over operator types with a correct general fallback. A new operator answers every question
from its two methods, and registers a rule only where it knows better: ``@trace_rule.register(MyOperator)``.
"""

from hesse.linalg.answer import Answer
from hesse.linalg.dense import dense, dense_rule
from hesse.linalg.diagonal import diagonal, diagonal_rule
from hesse.linalg.eigen import Eigen, eigsh, eigsh_rule
from hesse.linalg.estimate import Estimate
from hesse.linalg.norm import norm
from hesse.linalg.norm_rules import norm_rule
from hesse.linalg.solve import Solution, solve
from hesse.linalg.solve_rules import solve_rule
from hesse.linalg.trace import trace, trace_rule

__all__ = [
    "Answer",
    "Eigen",
    "Estimate",
    "Solution",
    "dense",
    "dense_rule",
    "diagonal",
    "diagonal_rule",
    "eigsh",
    "eigsh_rule",
    "norm",
    "norm_rule",
    "solve",
    "solve_rule",
    "trace",
    "trace_rule",
]
