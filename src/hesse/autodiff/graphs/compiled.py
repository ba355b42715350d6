"""A compiled program to look at, drawn as every graph is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx

from hesse.autodiff.events.records import TensorFacts
from hesse.autodiff.graphs.nodes import GraphNode, Kind
from hesse.autodiff.graphs.traced import AnyGraph
from hesse.autodiff.source_lines import Frame, Phase
from hesse.core.errors import StructureError

_CAPTURED = "captured"


class ProgramGraph(AnyGraph):
    """A traced program as people look at it. In a notebook it draws itself, where GraphViz is installed.

    Args:
        graph: the program: placeholders, operations, one output of flat nodes; `meta` as the tracer leaves it.
        inputs: what people call the placeholders, in order; without it the placeholders' own names.
        outputs: ``(name, kind)`` of each output, kind "answer" or "gradient"; without it outputs made in a backward pass count
            as gradients, others as answers.

    Raises:
        StructureError: not as many names as placeholders or outputs.

    Example:
        >>> graph = df.graph(params, x)  # doctest: +SKIP
        >>> print(graph)  # doctest: +SKIP
        >>> Path("program.dot").write_text(graph.to_dot())  # doctest: +SKIP
    """

    def __init__(
        self,
        graph: fx.Graph | fx.GraphModule,
        *,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[tuple[str, Kind]] | None = None,
    ) -> None:
        graph = graph.graph if isinstance(graph, fx.GraphModule) else graph
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        results = [result for node in graph.nodes if node.op == "output" for result in _flat(node.args)]
        names = [node.name for node in placeholders] if inputs is None else list(inputs)
        roles = [_role(number, result) for number, result in enumerate(results)] if outputs is None else list(outputs)
        _same_number("placeholders", len(placeholders), len(names))
        _same_number("outputs", len(results), len(roles))
        called = {node.name: name for node, name in zip(placeholders, names, strict=True)}
        nodes = [_node(node, called) for node in graph.nodes if node.op != "output"]
        used = {node.name for node in nodes}
        for number, (result, (name, kind)) in enumerate(zip(results, roles, strict=True)):
            nodes.append(_result(_fresh(f"result_{number}", used), name, kind, result))
        self.nodes: tuple[GraphNode, ...] = tuple(nodes)

    @property
    def title(self) -> str:
        """What was traced."""
        return "program"

    @property
    def modules(self) -> Mapping[str, str]:
        """Nothing: programs are flat."""
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing: programs are what they are."""
        return ()

    def __str__(self) -> str:
        kinds = Counter(node.kind for node in self.nodes)
        phases = Counter(node.phase for node in self.nodes if node.kind == "op")
        lines = [
            f"program of {kinds['op']} ops ({phases['forward']} forward, {phases['backward']} backward)",
            f"  inputs {kinds['input']}, constants {kinds['constant']}, "
            f"answers {kinds['answer']}, gradients {kinds['gradient']}",
        ]
        return "\n".join([*lines, *self._most_common()])


def _same_number(what: str, has: int, given: int) -> None:
    if has != given:
        asked = f"The {what} of a program were to be named."
        raise StructureError(asked, f"{given} names for {has} {what}", "give one name for each, in order")


def _flat(values: Any) -> Iterator[Any]:
    if isinstance(values, (tuple, list)):
        for value in values:
            yield from _flat(value)
    elif values is not None:
        yield values


def _role(number: int, result: Any) -> tuple[str, Kind]:
    backward = isinstance(result, fx.Node) and result.meta.get("phase") == "backward"
    kind: Kind = "gradient" if backward else "answer"
    return f"{kind} {number}", kind


def _fresh(name: str, used: set[str]) -> str:
    while name in used:
        name += "_"
    used.add(name)
    return name


def _phase(meta: dict[str, Any]) -> Phase:
    return cast(Phase, meta.get("phase", "forward"))


def _node(node: fx.Node, called: dict[str, str]) -> GraphNode:
    """A placeholder, constant or operation of the program."""
    kind: Kind = "op"
    op = str(node.target) if isinstance(node.target, (str, torch._ops.OpOverload)) else getattr(node.target, "__name__", "?")
    if node.op == "placeholder":
        kind, op = ("constant" if node.name.startswith(_CAPTURED) else "input"), called[node.name]
    elif node.op == "get_attr":
        kind = "constant"
    meta = node.meta
    source = None if meta.get("source") is None else Frame(*meta["source"])
    inputs = tuple(parent.name for parent in node.all_input_nodes)
    view = isinstance(node.target, torch._ops.OpOverload) and node.target.is_view
    return GraphNode(node.name, op, kind, _phase(meta), _facts(meta), source, inputs, view=view)


def _facts(meta: dict[str, Any]) -> tuple[TensorFacts, ...]:
    return () if meta.get("shape") is None else (TensorFacts(tuple(meta["shape"]), meta["dtype"], meta["device"]),)


def _result(name: str, called: str, kind: Kind, result: Any) -> GraphNode:
    """An output; one that is a plain number has no node behind it."""
    phase: Phase = "backward" if kind == "gradient" else "forward"
    if not isinstance(result, fx.Node):
        return GraphNode(name, f"{called} = {result}", kind, phase)
    return GraphNode(name, called, kind, phase, _facts(result.meta), None, (result.name,))
