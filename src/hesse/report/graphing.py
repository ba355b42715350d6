"""What `hesse graph TARGET` draws: the graph of a module or function with its derivative, on a self-contained page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from hesse.autodiff.graphs.traced import TracedGraph
from hesse.autodiff.model import is_one_batch, split_batch
from hesse.check.replica import call_model
from hesse.core.errors import HesseError, TargetError
from hesse.debug import trace_graph
from hesse.report.target import arguments, check_triple, describe
from hesse.report.user_code import UserCodeError

_ASKED = "`hesse graph` takes a TARGET that returns something that can be run."


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
    if isinstance(returned, (tuple, list)) and len(returned) == 3:
        call, args, kwargs = _loss(name, returned)
    elif isinstance(returned, (tuple, list)) and len(returned) == 2 and callable(returned[0]):
        call, inputs = returned
        args, kwargs = arguments(inputs)
    else:
        remedy = "return (module, inputs), (function, inputs) or (model, loss, data)"
        raise TargetError(_ASKED, f"{name} returned {describe(returned)}", remedy)
    try:
        return trace_graph(call, *args, order=order, **kwargs)
    except HesseError:
        raise
    except Exception as error:  # hesse's part runs while the function does not
        raise UserCodeError("running it", error) from error


def write_graph(graph: TracedGraph, folder: str | Path) -> tuple[Path, Path]:
    """Write ``graph.html`` and ``graph.dot`` into a folder, which is made if need be.

    Returns:
        both paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page, dot = folder / "graph.html", folder / "graph.dot"
    graph.to_html(page)
    dot.write_text(graph.to_dot(), encoding="utf-8")
    return page, dot


def _loss(name: str, returned: Any) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    target = check_triple(name, returned)
    batch = target.data if is_one_batch(target.data) else next(iter(target.data))
    inputs, targets = split_batch(batch, _ASKED)
    model, loss = target.model, target.loss

    def loss_of_batch(inputs: Any, targets: Any) -> Any:
        return loss(call_model(model, inputs), targets)

    return loss_of_batch, (inputs, targets), {}
