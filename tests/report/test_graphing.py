"""What `hesse graph` draws of a TARGET."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hesse
from hesse.core.errors import DataError, TargetError
from hesse.report import UserCodeError, graph_target, graphing, write_graph

from .small import classifier, images


@pytest.mark.parametrize("kind", ["module", "keywords", "function", "model", "pair"])
def test_targets(kind: str, tmp_path: Path) -> None:
    model, data = classifier(), images(4)
    returned: Any = {
        "module": (nn.Linear(3, 2), torch.ones(4, 3)),
        "keywords": (nn.Linear(3, 2), {"input": torch.ones(4, 3)}),
        "function": (lambda x, y: (x @ y).sin().sum(), (torch.ones(2, 3), torch.ones(3, 4))),
        "model": (model, nn.CrossEntropyLoss(), [data]),
        "pair": (hesse.functional(model), nn.CrossEntropyLoss(), data),
    }[kind]
    graph = graph_target("t", returned)
    assert {node.phase for node in graph.nodes} >= {"forward", "backward"}
    page, dot, *_ = write_graph(graph, tmp_path / "out")
    assert "<html" in page.read_text()
    assert dot.read_text().startswith("digraph")


def test_graphviz_where_it_is_and_the_graph_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dot = tmp_path / "dot"
    dot.write_text("#!/bin/sh\necho '<svg/>'\n")
    dot.chmod(0o755)
    small = graph_target("t", (torch.sin, torch.ones(2)))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert [path.name for path in write_graph(small, tmp_path / "out")] == ["graph.html", "graph.dot"]
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert write_graph(small, tmp_path / "out")[-1].read_text() == "<svg/>\n"
    monkeypatch.setattr(graphing, "_MOST_DRAWN", len(small) - 1)
    assert len(write_graph(small, tmp_path / "out")) == 2


def test_forward_alone() -> None:
    graph = graph_target("t", (nn.Linear(3, 2), torch.ones(4, 3)), order=0)
    assert {node.phase for node in graph.nodes} == {"forward"}


def test_a_loss_is_called_by_its_target() -> None:
    graph = graph_target("t.py:make", (classifier(), nn.CrossEntropyLoss(), images(4)))
    assert graph.title == "loss of t.py:make"
    assert [node.op for node in graph.nodes if node.kind == "answer"] == ["loss"]


def test_other_targets() -> None:
    with pytest.raises(TargetError):
        graph_target("t", nn.Linear(2, 3))
    with pytest.raises(TargetError, match=r"(?s)the class ReLU.*ReLU\(\.\.\.\), not the class"):
        graph_target("t", (nn.ReLU, torch.ones(2)))
    with pytest.raises(DataError, match="no batch"):
        graph_target("t", (nn.Linear(2, 3), nn.MSELoss(), []))
    with pytest.raises(UserCodeError):
        graph_target("t", (nn.Linear(2, 3), torch.ones(4, 5)))
