"""What `hesse graph` draws of a TARGET."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hesse
from hesse.core.errors import TargetError
from hesse.report import UserCodeError, graph_target, write_graph

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
    page, dot = write_graph(graph, tmp_path / "out")
    assert "<html" in page.read_text()
    assert dot.read_text().startswith("digraph")


def test_forward_alone() -> None:
    graph = graph_target("t", (nn.Linear(3, 2), torch.ones(4, 3)), order=0)
    assert {node.phase for node in graph.nodes} == {"forward"}


def test_other_targets() -> None:
    with pytest.raises(TargetError):
        graph_target("t", nn.Linear(2, 3))
    with pytest.raises(UserCodeError):
        graph_target("t", (nn.Linear(2, 3), torch.ones(4, 5)))
