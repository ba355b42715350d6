"""A graph as one HTML page that needs nothing beside itself: the graph as data, the layout and the controls as scripts."""

from __future__ import annotations

import html
import json
import linecache
import os
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from hesse.autodiff.graphs.nodes import ORDERS, GraphNode, parents

if TYPE_CHECKING:
    from hesse.autodiff.events.records import TensorFacts
    from hesse.autodiff.graphs.traced import AnyGraph

_FOLDER = "page"
_SCRIPTS = ("model.js", "ranks.js", "layout.js", "draw.js", "details.js", "controls.js")
_BAD, _MEANT, _VIEW = 1, 2, 4


def page(graph: AnyGraph) -> str:
    """The page of a graph.

    Args:
        graph: any graph.

    Returns:
        The document: style, scripts and data inside, nothing to load.
    """
    folder = files("hesse.autodiff.graphs") / _FOLDER
    text = (folder / "page.html").read_text(encoding="utf-8")
    parts = {
        "title": html.escape(graph.title),
        "style": (folder / "page.css").read_text(encoding="utf-8"),
        "data": json.dumps(page_data(graph), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "script": "\n".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS),
    }
    return re.sub(r"@(title|style|data|script)@", lambda mark: parts[mark[1]], text)


class _Table:
    """Values by number, each once."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}

    def __call__(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers))


def page_data(graph: AnyGraph) -> dict[str, Any]:
    """What the page's scripts read: nodes as rows of numbers into tables of texts.

    Args:
        graph: any graph.

    Returns:
        Plain dicts, lists, texts and finite numbers.
    """
    modules = {"": graph.modules.get("", graph.title), **graph.modules}
    order = list(modules)
    module_number = {path: number for number, path in enumerate(order)}
    node_number = {node.name: number for number, node in enumerate(graph.nodes)}
    ops, dtypes, lines, files_ = _Table(), _Table(), _Table(), _Table()
    lanes = _lanes(graph.nodes)
    rows = []
    for node in graph.nodes:
        source = -1 if node.source is None else lines((files_(node.source.file), *node.source[1:], _code(node.source)))
        flags = _BAD * node.bad + _MEANT * node.meant + _VIEW * (node.view and node.kind == "op")
        outputs = [_facts(facts, dtypes) for facts in node.outputs]
        partner = -1 if node.partner is None else node_number.get(node.partner, -1)
        inputs = [node_number[name] for name in node.inputs if name in node_number]
        place = module_number.get(node.module, 0)
        where = (ORDERS.index(node.phase), lanes[node.name], place, source)
        rows.append([node.name, ops(node.op), node.kind, *where, outputs, inputs, partner, flags])
    around = parents(modules)
    twin = {path: number for number, group in enumerate(graph.twins.groups) for path in group}
    return {
        "title": graph.title,
        "notes": list(graph.notes),
        "modules": [[path, modules[path], _parent(around[path], module_number), twin.get(path, -1)] for path in order],
        "ops": list(ops.numbers),
        "dtypes": list(dtypes.numbers),
        "files": _short(list(files_.numbers)),
        "lines": [list(line) for line in lines.numbers],
        "nodes": rows,
    }


def _parent(path: str | None, numbers: dict[str, int]) -> int:
    """The number of a module's parent; the root has none, and what nothing contains is in the root."""
    return -1 if path is None else numbers[path]


def _lanes(nodes: Sequence[GraphNode]) -> dict[str, int]:
    """The column of each node: 0 forward (downwards), 1 backward (upwards), and for a second backward pass 2 through the first
    one (downwards), 3 through the forward pass (upwards)."""
    phases = {node.name: node.phase for node in nodes}
    found: dict[str, int] = {}
    for node in nodes:
        before = [found[name] for name in node.inputs if name in found]
        lane = ORDERS.index(node.phase)
        if lane == 2:
            through = phases.get(node.partner or "")
            lane = 3 if through == "forward" else 2 if through is not None else max(2, *before, 2)
        if node.kind in ("gradient", "answer") and before:
            lane = before[0]
        found[node.name] = lane
    return found


def _facts(facts: TensorFacts, dtypes: _Table) -> list[Any]:
    """Type, shape, range, counts; trailing zeros left out."""
    row = [dtypes(str(facts.dtype).removeprefix("torch.")), list(facts.shape), _digits(facts.low), _digits(facts.high)]
    return [*row, facts.nans, facts.infs] if facts.nans or facts.infs else row


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _code(source: Any) -> str:
    return linecache.getline(source.file, source.line).strip()[:200]


def _short(paths: Iterable[str]) -> list[str]:
    """Paths without the folder that they have in common with the working directory."""
    here = os.getcwd() + os.sep
    return [path.removeprefix(here) for path in paths]
