"""Programs drawn: nodes with their facts, DOT that a grammar accepts, shapes and colors by role."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from torch import Tensor, fx

from hesse.autodiff.compiled.trace import record
from hesse.autodiff.graphs.compiled import ProgramGraph
from hesse.autodiff.graphs.dot import Vertex, dot_text, svg_text
from hesse.core.errors import MissingExtraError, StructureError

QUOTED = r'"(?:[^"\\\n]|\\["\\n])*"'
ATTRIBUTES = rf"\[\w+=(?:\w+|{QUOTED})(?:, \w+=(?:\w+|{QUOTED}))*\]"
NODE = re.compile(rf"  (?:node|({QUOTED})) ({ATTRIBUTES});")
EDGE = re.compile(rf"  ({QUOTED}) -> ({QUOTED}) ({ATTRIBUTES});")


def parsed(dot: str) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """Nodes with their attributes, and edges, of DOT in the form of one statement a line."""
    first, *body, last = dot.removesuffix("\n").split("\n")
    assert re.fullmatch(rf"digraph {QUOTED} \{{", first)
    assert last == "}"
    nodes, edges = {}, []
    for text in body:
        if node := NODE.fullmatch(text):
            nodes[node[1] or "node"] = node[2]
        else:
            edge = EDGE.fullmatch(text)
            assert edge, text
            edges.append((edge[1], edge[2], edge[3]))
    assert {name for edge in edges for name in edge[:2]} <= set(nodes)
    return nodes, edges


SCALE = torch.tensor([2.0, 3.0, 4.0, 5.0])


def program() -> fx.Graph:
    w, x = torch.ones(4, 3, requires_grad=True), torch.ones(2, 3)

    def run() -> tuple[Tensor, Tensor]:
        y = ((x @ w.T).tanh() * SCALE).sum()
        (grad,) = torch.autograd.grad(y, w)
        return grad, y

    trace, _ = record(run, [w, x])
    assert not trace.refused
    trace.graph.output(tuple(trace.results))
    return trace.graph


def drawn() -> ProgramGraph:
    return ProgramGraph(
        program(), inputs=["params['w']", "x", "SCALE"], outputs=[("params['w']", "gradient"), ("loss", "answer")]
    )


def test_nodes() -> None:
    graph = drawn()
    named = {node.op: node for node in graph.nodes}
    tanh = named["aten.tanh.default"]
    assert (tanh.kind, tanh.phase, tanh.shape, tanh.dtype) == ("op", "forward", (2, 4), torch.float32)
    assert tanh.source is not None
    assert (tanh.source.file, tanh.source.function.rpartition(".")[2]) == (__file__, "run")
    assert named["aten.tanh_backward.default"].phase == "backward"
    assert named["aten.tanh_backward.default"].source == tanh.source
    assert [node.kind for node in graph.nodes if node.op in ("x", "SCALE", "loss")] == ["input", "constant", "answer"]
    assert graph.counts["aten.tanh.default"] == 1
    assert sum(graph.counts.values()) == len([node for node in graph.nodes if node.kind == "op"])


def test_dot() -> None:
    graph = drawn()
    nodes, edges = parsed(graph.to_dot())
    assert len(nodes) == len(graph.nodes) + 1
    shapes = {re.search(r'label="([^"\\]*)', attributes)[1]: re.search(r"shape=(\w+)", attributes)[1]  # pyright: ignore
              for name, attributes in nodes.items() if name != "node"}  # fmt: skip
    assert shapes["x"] == shapes["SCALE"] == "invtrapezium"
    assert (shapes["loss"], shapes["aten.tanh.default"]) == ("octagon", "box")
    assert "shape=trapezium" in next(a for a in nodes.values() if "params['w']" in a and "invtrapezium" not in a)
    colors = {node.name: "blue" if node.phase == "backward" else "green" for node in graph.nodes}
    assert {f'"{name}"': color for name, color in colors.items()} == {
        **{f'"{name}"': colors[name] for name in colors if f'"{name}"' not in {b for _, b, _ in edges}},
        **{b: re.search(r"color=(\w+)", attributes)[1] for _, b, attributes in edges},  # pyright: ignore
    }
    assert len(edges) == sum(len(node.inputs) for node in graph.nodes)


def test_without_names() -> None:
    graph = ProgramGraph(fx.GraphModule({}, program()))
    assert [node.op for node in graph.nodes if node.kind in ("answer", "gradient")] == ["gradient 0", "answer 1"]
    text = str(graph)
    assert re.match(r"program of \d+ ops \(\d+ forward, \d+ backward\)", text)
    assert "inputs 2, constants 1, answers 1, gradients 1" in text
    assert "1 x aten.tanh.default" in text


def test_several_and_plain_outputs() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(((x, x), 2.5, None))
    nodes, edges = parsed(ProgramGraph(graph).to_dot())
    assert [edge[:2] for edge in edges] == [('"x"', '"result_0"'), ('"x"', '"result_1"')]
    assert "answer 2 = 2.5" in nodes['"result_2"']


def test_wrong_numbers_of_names() -> None:
    with pytest.raises(StructureError, match="2 names for 3 placeholders"):
        ProgramGraph(program(), inputs=["a", "b"])
    with pytest.raises(StructureError, match="1 names for 2 outputs"):
        ProgramGraph(program(), outputs=[("a", "answer")])


def test_labels_are_escaped() -> None:
    odd = 'a "quoted" \\ back\\nslash'
    nodes, _ = parsed(dot_text([Vertex('x"', (odd, "second\nline"), bad=True)], [('x"', 'x"')], 'the "title"'))
    (name, attributes) = list(nodes.items())[1]
    assert name == '"x\\""'
    assert 'label="a \\"quoted\\" \\\\ back\\\\nslash\\nsecond\\nline"' in attributes


def test_svg_needs_graphviz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingExtraError, match="install GraphViz"):
        drawn().to_svg()
    assert drawn()._repr_svg_() is None


def test_svg_by_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    from pathlib import Path

    tool = Path(str(tmp_path)) / "dot"
    tool.write_text('#!/bin/sh\necho "<svg $1>"; cat\n')
    tool.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(tool))
    assert svg_text("digraph x {}") == "<svg -Tsvg>\ndigraph x {}"
    tool.write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    with pytest.raises(MissingExtraError, match="ended with 3: broken"):
        svg_text("digraph x {}")


@pytest.mark.skipif(shutil.which("dot") is None, reason="GraphViz is not installed")
def test_graphviz_draws_it() -> None:
    assert "</svg>" in drawn().to_svg()
