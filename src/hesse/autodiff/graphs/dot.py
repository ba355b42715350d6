"""Graphs as DOT text, and as SVG where the `dot` program of GraphViz is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hesse.autodiff.graphs.nodes import Kind, parents
from hesse.core.errors import MissingExtraError, UnsupportedError

_SHAPES: dict[str, str] = {
    "input": "invtrapezium",
    "parameter": "invtrapezium",
    "buffer": "invtrapezium",
    "constant": "invtrapezium",
    "op": "box",
    "group": "box3d",
    "answer": "octagon",
    "gradient": "trapezium",
}
_STYLES = {"constant": ", style=dashed", "parameter": ", style=filled, fillcolor=lightyellow"}
_COLORS = {"forward": "green", "backward": "blue", "double backward": "purple"}
_SECONDS = 120


@dataclass(frozen=True)
class Vertex:
    """A node to draw.

    Attributes:
        name: unique in its graph.
        lines: the lines of its label.
        kind: each has a shape of its own; "group" stands for a whole module.
        phase: "forward" (green edges into it), "backward" (blue) or "double backward" (purple).
        bad: drawn in red.
        group: the path of the module that it is drawn in.
    """

    name: str
    lines: tuple[str, ...]
    kind: Kind | str = "op"
    phase: str = "forward"
    bad: bool = False
    group: str = ""


def dot_text(
    vertices: Iterable[Vertex],
    edges: Iterable[tuple[str, str]],
    title: str = "program",
    groups: Mapping[str, str] | None = None,
) -> str:
    """A directed graph in the DOT language.

    Args:
        vertices: the nodes.
        edges: ``(from, to)`` by the nodes' names.
        title: the graph's name.
        groups: the label of each module by its path; its nodes are drawn in one box, within that of the module around it.

    Returns:
        Text of one node, edge or bracket a line.
    """
    vertices = list(vertices)
    phases = {vertex.name: vertex.phase for vertex in vertices}
    lines = [f"digraph {_quoted(title)} {{", '  node [fontname="monospace", fontsize=10];']
    labels = {path: label for path, label in (groups or {}).items() if path}
    inside: dict[str, list[Vertex]] = {}
    for vertex in vertices:
        inside.setdefault(vertex.group if vertex.group in labels else "", []).append(vertex)
    above = parents(labels)
    below: dict[str, list[str]] = {}
    for path, parent in above.items():
        below.setdefault(parent or "", []).append(path)
    lines += _cluster("", inside, below, labels, 1)
    lines += [f"  {_quoted(a)} -> {_quoted(b)} [color={_COLORS[phases.get(b, 'forward')]}];" for a, b in edges]
    return "\n".join([*lines, "}", ""])


def _cluster(
    path: str, inside: dict[str, list[Vertex]], below: dict[str, list[str]], labels: dict[str, str], depth: int
) -> Iterator[str]:
    """The nodes of a module and the modules in it, each of those in brackets of its own."""
    margin = "  " * depth
    for vertex in inside.get(path, ()):
        style = ", color=red, fontcolor=red" if vertex.bad else _STYLES.get(vertex.kind, "")
        label = _quoted("\n".join(vertex.lines))
        yield f"{margin}{_quoted(vertex.name)} [label={label}, shape={_SHAPES[vertex.kind]}{style}];"
    for child in below.get(path, ()):
        yield f"{margin}subgraph {_quoted('cluster_' + child)} {{"
        yield f'{margin}  graph [label={_quoted(labels[child])}, fontname="monospace", fontsize=10, style=rounded];'
        yield from _cluster(child, inside, below, labels, depth + 1)
        yield f"{margin}}}"


def _quoted(text: str) -> str:
    """A quoted string of DOT, which knows the escapes of quotes, backslashes and line ends."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def svg_text(dot: str) -> str:
    """A DOT graph laid out as SVG.

    Args:
        dot: the graph's text.

    Returns:
        The SVG document as text.

    Raises:
        MissingExtraError: the `dot` program is not on the path, or fails.
        UnsupportedError: the graph is too large for it.
    """
    asked = "A graph was to be drawn as SVG."
    program = shutil.which("dot")
    if program is None:
        remedy = "install GraphViz (apt install graphviz, brew install graphviz), or draw `to_dot()` elsewhere"
        raise MissingExtraError(asked, "no program `dot` on the path", remedy)
    try:
        done = subprocess.run(
            [program, "-Tsvg"], input=dot, capture_output=True, encoding="utf-8", timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        remedy = "draw less of it (`subgraph(...)`, `to_dot(depth=...)`), or use `to_html()`"
        raise UnsupportedError(asked, f"`dot` was not done after {_SECONDS} s", remedy) from error
    if done.returncode:
        found = f"`{program} -Tsvg` ended with {done.returncode}: {done.stderr.strip()[:500]}"
        raise MissingExtraError(asked, found, "mend the installation of GraphViz, or use `to_dot()`")
    return done.stdout
