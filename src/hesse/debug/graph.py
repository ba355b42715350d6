"""The graph of any function or module: what ran, forward and backward, where, and with which values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from hesse.autodiff.graphs.modules import ModuleCalls
from hesse.autodiff.graphs.run import Recipe, record_run
from hesse.autodiff.graphs.traced import TracedGraph
from hesse.core.tree import Tree
from hesse.debug.graph_subject import GraphSubject


def trace_graph(
    f: Callable[..., Any],
    *args: Any,
    order: Literal[0, 1, 2] = 1,
    values: bool = True,
    cotangent: Tree | None = None,
    argnums: int | Sequence[int] | None = None,
    **kwargs: Any,
) -> TracedGraph:
    """Run a function with its derivative and give the graph of all that ran.

    Each node is an operation, a tensor from outside or a result, with the line of the user's code (a backward op has the line
    of the op that it differentiates), shapes, dtypes, the range of its values, non-finite counts, and the module whose call it
    belongs to. An op in place makes a new version: who reads the memory afterwards reads from that node.

    Differentiated by: trainable parameters that the function reaches, and arguments that require grad; where there are neither,
    every floating-point argument. Differentiated is: an output named "loss", else the first output if it is a scalar, else the
    sum of all outputs. Both choices stand in `notes`.

    The function runs once, on copies of its tensor arguments, in plain autograd with gradients switched on; buffers, `.grad`,
    training flags and random states are put back; what else it changes stays changed (an optimizer's step, say).
    `torch.compile`d parts run op by op.

    Args:
        f: a function, method or module.
        *args: its arguments.
        order: 0 for the forward graph alone, 1 with the backward graph, 2 with the graph of the product of the Hessian with the
            gradient, which goes backward through the backward graph (fused attention and recurrent kernels, which cannot do
            that, run in their plain forms).
        values: take ranges and non-finite counts; without them devices are not waited for.
        cotangent: what to send backward, of the structure and shapes of the output or of a part of it.
        argnums: differentiate by these positional arguments too.
        **kwargs: its keyword arguments.

    Returns:
        The graph: print it, search its `nodes`, or draw it by `save("graph.html")`, `to_dot()` or `to_svg()`.

    Raises:
        LeafError: a module with parameters that are not initialized, or nothing to differentiate by at `argnums`.
        StructureError: something that cannot be called, or a class of modules; a cotangent that does not match the output;
            `argnums` beyond the arguments.

    Example:
        >>> graph = hesse.trace_graph(model, x)  # doctest: +SKIP
        >>> graph.find("softmax")[0].outputs[0]  # doctest: +SKIP
        float32[8, 4, 16, 16] in [0.01, 0.4]

    Cost: one gradient (order 0: one forward pass; order 2: about three gradients), and some 0.3 milliseconds an op for its
        place and the range of its result. No tensor outlives the call.
    """
    subject = GraphSubject(f, args, kwargs, argnums)
    calls = ModuleCalls(subject.modules)
    with subject.preserved():
        recorder, notes = record_run(subject.run, subject.variables, subject.outside, calls, Recipe(order, values, cotangent))
    return TracedGraph(recorder.nodes, subject.title, calls.texts, notes)
