"""Graphs as DOT text, and as SVG where the `dot` program of GraphViz is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hesse.core.errors import MissingExtraError

Kind = Literal["input", "constant", "op", "answer", "gradient"]
_SHAPES: dict[str, str] = {
    "input": "invtrapezium",
    "constant": "invtrapezium",
    "op": "box",
    "answer": "octagon",
    "gradient": "trapezium",
}
_COLORS = {"forward": "green", "backward": "blue"}
_SECONDS = 60


@dataclass(frozen=True)
class Vertex:
    """A node to draw.

    Attributes:
        name: unique in its graph.
        lines: the lines of its label.
        kind: input, constant, op, answer or gradient; each has a shape of its own.
        phase: "forward" (green edges into it) or "backward" (blue).
        bad: drawn in red.
    """

    name: str
    lines: tuple[str, ...]
    kind: Kind = "op"
    phase: str = "forward"
    bad: bool = False


def dot_text(vertices: Iterable[Vertex], edges: Iterable[tuple[str, str]], title: str = "program") -> str:
    """A directed graph in the DOT language.

    Args:
        vertices: the nodes.
        edges: ``(from, to)`` by the nodes' names.
        title: the graph's name.

    Returns:
        Text of one node or edge a line.
    """
    phases: dict[str, str] = {}
    lines = [f"digraph {_quoted(title)} {{", '  node [fontname="monospace", fontsize=10];']
    for vertex in vertices:
        phases[vertex.name] = vertex.phase
        style = ", color=red, fontcolor=red" if vertex.bad else ", style=dashed" if vertex.kind == "constant" else ""
        label = _quoted("\n".join(vertex.lines))
        lines.append(f"  {_quoted(vertex.name)} [label={label}, shape={_SHAPES[vertex.kind]}{style}];")
    lines += [f"  {_quoted(a)} -> {_quoted(b)} [color={_COLORS[phases.get(b, 'forward')]}];" for a, b in edges]
    return "\n".join([*lines, "}", ""])


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
    """
    program = shutil.which("dot")
    if program is None:
        remedy = "install GraphViz (apt install graphviz, brew install graphviz), or draw `to_dot()` elsewhere"
        raise MissingExtraError("A graph was to be drawn as SVG.", "no program `dot` on the path", remedy)
    done = subprocess.run([program, "-Tsvg"], input=dot, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        found = f"`{program} -Tsvg` ended with {done.returncode}: {done.stderr.strip()[:500]}"
        raise MissingExtraError(
            "A graph was to be drawn as SVG.", found, "mend the installation of GraphViz, or use `to_dot()`"
        )
    return done.stdout
