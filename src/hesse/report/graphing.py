"""What `hesse graph TARGET` draws: the graph of a module or function with its derivative, on a self-contained page."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from hesse.autodiff.graphs.traced import TracedGraph
from hesse.autodiff.model import split_batch
from hesse.check.replica import call_model
from hesse.core.errors import HesseError, TargetError
from hesse.debug import trace_graph
from hesse.report.target import arguments, batches_of, check_triple, describe
from hesse.report.user_code import UserCodeError

_ASKED = "`hesse graph` takes a TARGET that returns something that can be run."
_MOST_DRAWN = 1000  # nodes that GraphViz lays out within seconds


def graph_target(name: str, returned: Any, *, order: Literal[0, 1, 2] = 1) -> TracedGraph:
    """The graph of what a TARGET returned.

    Args:
        name: TARGET as it was written.
        returned: ``(module, inputs)`` or ``(function, inputs)``, inputs being a tensor, a tuple of positional or a dict of
            keyword ones; or ``(model, loss, data)``: the loss of the first batch.
        order: 0 forward, 1 with the backward graph, 2 with the double-backward graph.

    Raises:
        TargetError: something else was returned.
        UserCodeError: the user's code raised.

    Cost: that of `hesse.trace_graph`.
    """
    title = ""
    if isinstance(returned, (tuple, list)) and len(returned) == 3:
        call, args, kwargs = _loss(name, returned)
        title = f"loss of {name}"
    elif isinstance(returned, (tuple, list)) and len(returned) == 2 and callable(returned[0]):
        call, inputs = returned
        if isinstance(call, type):
            raise TargetError(_ASKED, f"the class {call.__name__}", f"return {call.__name__}(...), not the class")
        args, kwargs = arguments(inputs)
    else:
        remedy = "return (module, inputs), (function, inputs) or (model, loss, data)"
        raise TargetError(_ASKED, f"{name} returned {describe(returned)}", remedy)
    try:
        traced = trace_graph(call, *args, order=order, **kwargs)
    except HesseError:
        raise
    except Exception as error:  # hesse's part runs while the function does not
        raise UserCodeError("running it", error) from error
    return TracedGraph(traced.nodes, title or traced.title, traced.modules, traced.notes)


def write_graph(graph: TracedGraph, folder: str | Path) -> list[Path]:
    """Write ``graph.html`` and ``graph.dot`` into a folder, which is made if need be.

    Where the `dot` program of GraphViz is installed, and the graph is not too large for it, ``graph.svg`` too.

    Returns:
        the paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    suffixes = [".html", ".dot"]
    if shutil.which("dot") is not None and len(graph) <= _MOST_DRAWN:
        suffixes.append(".svg")
    return [graph.save(folder / f"graph{suffix}") for suffix in suffixes]


def _loss(name: str, returned: Any) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    target = check_triple(name, returned)
    inputs, targets = split_batch(next(batches_of(target.data, _ASKED)), _ASKED)
    model, loss = target.model, target.loss

    def loss_of_batch(inputs: Any, targets: Any) -> Any:
        return {"loss": loss(call_model(model, inputs), targets)}

    return loss_of_batch, (inputs, targets), {}
