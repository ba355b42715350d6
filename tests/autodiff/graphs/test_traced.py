"""What every graph can do: search, parts, summary, DOT with nested modules, files."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import torch

from hesse.autodiff.events.records import TensorFacts
from hesse.autodiff.graphs.nodes import GraphNode, parents
from hesse.autodiff.graphs.traced import TracedGraph
from hesse.autodiff.graphs.twins import find_twins
from hesse.autodiff.source_lines import Frame
from hesse.core.errors import MissingExtraError, StructureError

QUOTED = r'"(?:[^"\\\n]|\\["\\n])*"'
ATTRIBUTES = rf"\[\w+=(?:\w+|{QUOTED})(?:, \w+=(?:\w+|{QUOTED}))*\]"
STATEMENT = re.compile(rf"\s*(?:(?:node|graph|{QUOTED}) {ATTRIBUTES};|{QUOTED} -> {QUOTED} {ATTRIBUTES};)")
CLUSTER = re.compile(rf"\s*subgraph {QUOTED} \{{")


def facts(*shape: int, nans: int = 0) -> tuple[TensorFacts, ...]:
    return (TensorFacts(shape, torch.float32, torch.device("cpu"), -1.0, 2.5, nans=nans),)


def layer(path: str, given: str, width: int = 3) -> list[GraphNode]:
    """A linear map and a function, as nodes of one module in another."""
    weight, product, out = (f"{path}.{name}" for name in ("weight", "mm", "tanh"))
    return [
        GraphNode(weight, weight, "parameter", "forward", facts(width, 3), module=f"{path}.lin"),
        GraphNode(product, "aten.mm.default", "op", "forward", facts(4, 3), None, (given, weight), f"{path}.lin"),
        GraphNode(out, "aten.tanh.default", "op", "forward", facts(4, 3), Frame("net.py", 7, "f"), (product,), path),
    ]


def graph(second: int = 3) -> TracedGraph:
    nodes = [
        GraphNode("x", "x", "input", "forward", facts(4, 3)),
        *layer("a", "x"),
        *layer("b", "a.tanh", second),
        GraphNode("out", 'the "output"', "answer", "forward", facts(4, 3, nans=2), None, ("b.tanh",)),
        GraphNode("back", "aten.tanh_backward.default", "op", "backward", facts(4, 3), None, ("b.tanh",), "b", "b.tanh"),
        GraphNode("grad", "gradient by x", "gradient", "backward", facts(4, 3), None, ("back",)),
    ]
    modules = {"": "Net()", "a": "Layer()", "a.lin": "Linear(3, 3)", "b": "Layer()", "b.lin": f"Linear({second}, 3)"}
    return TracedGraph(nodes, "Net", modules, ["a note"])


def names(part: TracedGraph | tuple[GraphNode, ...]) -> list[str]:
    return [node.name for node in (part.nodes if isinstance(part, TracedGraph) else part)]


def test_find_looks_at_names_ops_modules_and_lines() -> None:
    assert names(graph().find("TANH_back")) == ["back"]
    assert names(graph().find("net.py:7")) == ["a.tanh", "b.tanh"]
    assert names(graph().find("b.lin")) == ["b.weight", "b.mm"]
    assert graph().find("conv") == ()


def test_parts_are_ancestors_descendants_and_what_lies_between() -> None:
    whole = graph()
    assert names(whole.subgraph(to="a.tanh")) == ["x", "a.weight", "a.mm", "a.tanh"]
    assert names(whole.subgraph(of=whole["b.tanh"])) == ["b.tanh", "out", "back", "grad"]
    assert names(whole.subgraph(of="x", to="b.mm")) == ["x", "a.mm", "a.tanh", "b.mm"]
    assert whole.subgraph(to="x").title == "part of Net"
    with pytest.raises(StructureError, match=r"no node 'mm'; there are a\.mm, b\.mm"):
        whole.subgraph(to="mm")


def test_a_part_can_be_drawn_though_edges_lead_out_of_it() -> None:
    part = graph().subgraph(of="b.tanh")
    defined = set(re.findall(rf"^\s*({QUOTED}) \[", part.to_dot(), re.MULTILINE))
    used = set(re.findall(rf"({QUOTED}) -> ({QUOTED})", part.to_dot()))
    assert {name for edge in used for name in edge} <= defined
    assert "b.tanh" in part.to_html()
    assert part["b.tanh"].inputs == ()
    assert list(part.modules) == ["", "b"]
    assert names(part.subgraph(of="back")) == ["back", "grad"]


def test_summary() -> None:
    assert str(graph()).splitlines() == [
        "graph of Net: 5 ops (4 forward, 1 backward)",
        "  inputs 1, parameters 2, answers 1, gradients 1",
        "  results of ops: 240 B",
        "  modules 4, the deepest a.lin: Linear(3, 3)",
        "  2 alike: a, b (Layer)",
        '  not finite: 1 node, the first out · the "output" · float32[4, 3] in [-1, 2.5] with 2 nan of 12',
        "  note: a note",
        "      2 x aten.mm.default",
        "      2 x aten.tanh.default",
        "      1 x aten.tanh_backward.default",
    ]
    assert len(graph()) == 10
    assert names(graph().bad) == ["out"]


def test_twins_need_equal_options_shapes_and_edges() -> None:
    assert graph().twins.groups == (("a", "b"), ("a.lin", "b.lin"))
    assert graph().twins.outermost == (("a", "b"),)
    assert graph(second=5).twins.groups == ()
    whole = graph()
    other = [dataclasses.replace(n, inputs=("b.weight",)) if n.name == "b.tanh" else n for n in whole.nodes]
    assert find_twins(other, whole.modules).groups == (("a.lin", "b.lin"),)


def test_parents_are_the_nearest_known_modules() -> None:
    assert parents(["a.b.c", "", "a", "d.e"]) == {"": None, "a": "", "a.b.c": "a", "d.e": ""}
    assert parents(["m", "m.x", "m#2", "m#2.x"]) == {"m": None, "m#2": None, "m.x": "m", "m#2.x": "m#2"}


def test_dot_nests_modules_and_parses() -> None:
    first, *lines, last = graph().to_dot().removesuffix("\n").split("\n")
    assert first == 'digraph "Net" {'
    assert last == "}"
    inside: list[str] = []
    place: dict[str, tuple[str, ...]] = {}
    for line in lines:
        if CLUSTER.fullmatch(line):
            inside.append(re.findall(QUOTED, line)[0])
        elif line.strip() == "}":
            inside.pop()
        else:
            assert STATEMENT.fullmatch(line), line
            if "->" not in line and not line.strip().startswith(("node", "graph")):
                place[re.findall(QUOTED, line)[0].strip('"')] = tuple(inside)
    assert not inside
    assert place["b.mm"] == place["b.weight"] == ('"cluster_b"', '"cluster_b.lin"')
    assert place["back"] == ('"cluster_b"',)
    assert place["x"] == place["out"] == place["grad"] == ()
    edges = re.findall(rf"({QUOTED}) -> ({QUOTED}) \[color=(\w+)\]", graph().to_dot())
    assert ('"b.tanh"', '"back"', "blue") in edges
    assert ('"x"', '"a.mm"', "green") in edges
    assert len(edges) == 9
    assert re.search(r'"out" \[label="the \\"output\\"\\n.*2 nan of 12".*color=red', graph().to_dot())


def test_dot_to_a_depth_draws_modules_as_one_node() -> None:
    text = graph().to_dot(depth=0)
    assert re.findall(rf"({QUOTED}) -> ({QUOTED})", text) == [
        ('"x"', '"module a"'), ('"module a"', '"module b"'), ('"module b"', '"out"'), ('"module b"', '"grad"'),
    ]  # fmt: skip
    assert "subgraph" not in text
    deeper = graph().to_dot(depth=1)
    assert '"module a.lin"' in deeper
    assert '"a.tanh"' in deeper
    assert '"a.mm"' not in deeper


def test_files_by_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert graph().save(tmp_path / "g.dot").read_text() == graph().to_dot()
    assert graph().save(str(tmp_path / "g.gv")).read_text() == graph().to_dot()
    assert graph().save(tmp_path / "g.html").read_text() == graph().to_html()
    graph().to_html(tmp_path / "h.html")
    assert (tmp_path / "h.html").read_text() == graph().to_html()
    with pytest.raises(StructureError, match=r"'\.png' of g\.png"):
        graph().save(tmp_path / "g.png")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingExtraError, match="install GraphViz"):
        graph().save(tmp_path / "g.svg")
    assert not (tmp_path / "g.svg").exists()
    assert graph()._repr_svg_() is None
    assert graph()._repr_html_().startswith("<iframe srcdoc=")
