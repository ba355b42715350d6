"""The page's data and its document: complete, self-contained, and safe whatever the names are."""

from __future__ import annotations

import json
import re

import torch
from torch import nn

from hesse.autodiff.events.records import TensorFacts
from hesse.autodiff.graphs.html import page, page_data
from hesse.autodiff.graphs.nodes import GraphNode
from hesse.autodiff.graphs.traced import TracedGraph
from hesse.autodiff.source_lines import Frame
from hesse.debug.graph import trace_graph


def embedded(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_every_node_is_in_the_data() -> None:
    graph = trace_graph(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), torch.randn(5, 3), order=2)
    data = embedded(page(graph))
    assert data == json.loads(json.dumps(page_data(graph)))
    assert len(data["nodes"]) == len(graph)
    for node, row in zip(graph.nodes, data["nodes"], strict=True):
        name, op, kind, order, lane, module, line, outputs, inputs, partner, _ = row
        assert (name, data["ops"][op], kind) == (node.name, node.op, node.kind)
        assert data["modules"][module][0] == node.module
        assert [graph.nodes[number].name for number in inputs] == list(node.inputs)
        assert (None if partner < 0 else graph.nodes[partner].name) == node.partner
        assert [shape for _, shape, *_ in outputs] == [list(facts.shape) for facts in node.outputs]
        assert (order, lane) in {(0, 0), (1, 1), (2, 2), (2, 3)}
        if node.source is not None:
            file, number, function, _ = data["lines"][line]
            assert (number, function) == (node.source.line, node.source.function)
            assert node.source.file.endswith(data["files"][file])


def test_lanes_of_the_second_backward_pass() -> None:
    graph = trace_graph(lambda x: (x.sin() ** 2).sum(), torch.randn(3), order=2)
    lanes = {node.name: row[4] for node, row in zip(graph.nodes, page_data(graph)["nodes"], strict=True)}
    for node in graph.nodes:
        if node.phase == "double backward" and node.partner is not None:
            assert lanes[node.name] == {"backward": 2, "forward": 3}[graph[node.partner].phase]
    assert lanes["Hessian x gradient by x"] == 3


def test_the_page_loads_nothing_and_odd_names_break_nothing() -> None:
    odd = '</script><script>alert("1")</script> @script@ \\ \u2028'
    facts = (TensorFacts((2,), torch.float32, torch.device("cpu"), -1.0, 1.0, nans=1, infs=2),)
    node = GraphNode(odd, odd, "op", "forward", facts, Frame(odd, 3, odd), (), odd)
    text = page(TracedGraph([node], odd, {"": odd, odd: odd}, [odd]))
    assert embedded(text)["nodes"][0][0] == odd
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert "alert(&quot;1&quot;)" in text
    assert not re.search(r'(?:src|href)\s*=\s*"|@import|url\((?!#)|fetch\(|XMLHttp', text.replace(json.dumps(odd), ""))
    assert embedded(text)["nodes"][0][7] == [[0, [2], -1.0, 1.0, 1, 2]]
