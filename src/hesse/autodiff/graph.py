"""A traced program to look at: its nodes as data, as a summary, as DOT and as SVG."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from hesse.autodiff.graph_dot import Kind, Vertex, dot_text, svg_text
from hesse.autodiff.source_lines import Frame, Phase
from hesse.core.errors import MissingExtraError, StructureError

_MOST_COMMON = 12
_CAPTURED = "captured"


@dataclass(frozen=True)
class GraphNode:
    """A node of a program.

    Attributes:
        name: unique in the program.
        op: the operation ("aten.mm.default"), or what people call an input or output ("params['w']").
        kind: "input", "constant" (closed over, or made from Python data), "op", "answer" or "gradient".
        phase: "forward" or "backward".
        shape, dtype, device: of its tensor; None where it is none (numbers, several tensors).
        source: the user's line, of the forward op for ops of a backward pass; None where it is not known.
        inputs: names of the nodes that it reads, each once, in order.
    """

    name: str
    op: str
    kind: Kind
    phase: Phase
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    device: torch.device | None
    source: Frame | None
    inputs: tuple[str, ...]

    @property
    def label(self) -> tuple[str, ...]:
        """The lines of its drawing: operation, type and shape, line."""
        tensor = () if self.shape is None else (f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}",)
        where = () if self.source is None or self.kind in ("answer", "gradient") else (str(self.source),)
        return (self.op, *tensor, *where)


class ProgramGraph:
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
    def counts(self) -> dict[str, int]:
        """How many times each operation stands in the program, the most frequent first."""
        return dict(Counter(node.op for node in self.nodes if node.kind == "op").most_common())

    def to_dot(self) -> str:
        """The graph in the DOT language: inputs as inverted trapezia (dashed if closed over), gradients as trapezia, answers as
        octagons, edges into forward operations green and into backward ones blue."""
        vertices = [Vertex(node.name, node.label, node.kind, node.phase) for node in self.nodes]
        edges = [(name, node.name) for node in self.nodes for name in node.inputs]
        return dot_text(vertices, edges)

    def to_svg(self) -> str:
        """The graph as an SVG document.

        Raises:
            MissingExtraError: the `dot` program of GraphViz is not on the path.
        """
        return svg_text(self.to_dot())

    def _repr_svg_(self) -> str | None:
        try:
            return self.to_svg()
        except MissingExtraError:
            return None

    def __str__(self) -> str:
        kinds = Counter(node.kind for node in self.nodes)
        phases = Counter(node.phase for node in self.nodes if node.kind == "op")
        counts = self.counts
        lines = [
            f"program of {kinds['op']} ops ({phases['forward']} forward, {phases['backward']} backward)",
            f"  inputs {kinds['input']}, constants {kinds['constant']}, "
            f"answers {kinds['answer']}, gradients {kinds['gradient']}",
        ]
        lines += [f"  {count:>5} x {op}" for op, count in list(counts.items())[:_MOST_COMMON]]
        rest = len(counts) - _MOST_COMMON
        return "\n".join([*lines, *([f"  and {rest} other ops"] if rest > 0 else [])])


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
    return GraphNode(
        node.name, op, kind, _phase(meta), meta.get("shape"), meta.get("dtype"), meta.get("device"), source, inputs
    )


def _result(name: str, called: str, kind: Kind, result: Any) -> GraphNode:
    """An output; one that is a plain number has no node behind it."""
    phase: Phase = "backward" if kind == "gradient" else "forward"
    if not isinstance(result, fx.Node):
        return GraphNode(name, f"{called} = {result}", kind, phase, None, None, None, None, ())
    meta = result.meta
    return GraphNode(name, called, kind, phase, meta.get("shape"), meta.get("dtype"), meta.get("device"), None, (result.name,))
