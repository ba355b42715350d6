"""Where a NaN comes from, how near a step is to overflow, and graphs to look at."""

from hesse.autodiff.graphs.traced import TracedGraph
from hesse.debug.graph import trace_graph
from hesse.debug.headroom import HeadroomReport, OpHeadroom, exponent_headroom
from hesse.debug.nonfinite import find_nonfinite, watch_nonfinite
from hesse.debug.nonfinite_report import NonfiniteReport
from hesse.debug.sentinel import NonFiniteStepError, Sentinel

__all__ = [
    "HeadroomReport", "NonFiniteStepError", "NonfiniteReport", "OpHeadroom", "Sentinel", "TracedGraph", "exponent_headroom",
    "find_nonfinite", "trace_graph", "watch_nonfinite",
]  # fmt: skip
