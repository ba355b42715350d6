"""Graphs to look at: what every graph can do, whoever traced it."""

from __future__ import annotations

import dataclasses
import html
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from pathlib import Path

from hesse.autodiff.graphs.dot import Vertex, dot_text, svg_text
from hesse.autodiff.graphs.nodes import ORDERS, GraphNode, parents
from hesse.autodiff.graphs.twins import Twins, find_twins
from hesse.core.errors import MissingExtraError, StructureError

_MOST_COMMON = 12


class AnyGraph(ABC):
    """What `TracedGraph` and `ProgramGraph` share: nodes that can be searched, cut out, printed and drawn."""

    nodes: tuple[GraphNode, ...]

    @property
    @abstractmethod
    def title(self) -> str:
        """What was traced."""

    @property
    @abstractmethod
    def modules(self) -> Mapping[str, str]:
        """What each module is that was called, by its path."""

    @property
    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """What there is to know about how it was traced."""

    @property
    def counts(self) -> dict[str, int]:
        """How many times each operation stands in the graph, the most frequent first."""
        return dict(Counter(node.op for node in self.nodes if node.kind == "op").most_common())

    @property
    def twins(self) -> Twins:
        """Which modules are alike: same class, same operations on the same shapes, connected in the same way."""
        return find_twins(self.nodes, self.modules)

    @property
    def bad(self) -> tuple[GraphNode, ...]:
        """The nodes with NaN or infinity in a value (masks, whose infinities are meant, do not count), in the order of time."""
        return tuple(node for node in self.nodes if node.bad)

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, name: str) -> GraphNode:
        return self._node(name)

    def find(self, text: str) -> tuple[GraphNode, ...]:
        """The nodes whose name, operation, module or source line contains a text, whatever its case.

        Args:
            text: to look for ("softmax", "layers.3", "train.py:12").

        Returns:
            The nodes, in the order of time.
        """
        wanted = text.casefold()
        return tuple(node for node in self.nodes if any(wanted in text.casefold() for text in _texts(node)))

    def subgraph(self, *, to: str | GraphNode | None = None, of: str | GraphNode | None = None) -> TracedGraph:
        """A part of the graph.

        Args:
            to: keep this node and everything that it was computed from.
            of: keep this node and everything that was computed from it.

        Returns:
            What passes all conditions, as a graph; its nodes read each other only.

        Raises:
            StructureError: no such node.
        """
        kept = {node.name for node in self.nodes}
        if to is not None:
            kept &= _reached(self._node(to).name, {node.name: node.inputs for node in self.nodes})
        if of is not None:
            after: dict[str, list[str]] = {node.name: [] for node in self.nodes}
            for node in self.nodes:
                for parent in node.inputs:
                    after[parent].append(node.name)
            kept &= _reached(self._node(of).name, after)
        nodes = [_cut_out(node, kept) for node in self.nodes if node.name in kept]
        around, held = parents(self.modules), {""}
        for node in nodes:
            path: str | None = node.module
            while path and path not in held:
                held.add(path)
                path = around.get(path)
        modules = {path: text for path, text in self.modules.items() if path in held}
        return TracedGraph(nodes, f"part of {self.title}", modules, self.notes)

    def _node(self, which: str | GraphNode) -> GraphNode:
        name = which if isinstance(which, str) else which.name
        found = next((node for node in self.nodes if node.name == name), None)
        if found is None:
            near = [node.name for node in self.find(name)][:5]
            found = f"no node '{name}'" + (f"; there are {', '.join(near)}" if near else "")
            raise StructureError("A node of the graph was asked for by name.", found, "`find(text)` gives nodes by their op")
        return found

    def to_dot(self, *, depth: int | None = None) -> str:
        """The graph in the DOT language: inputs as inverted trapezia (dashed if closed over), gradients as trapezia, answers as
        octagons; edges into forward operations green, into backward ones blue, into those of a second backward pass purple;
        what is not finite red; modules as boxes around their operations.

        Args:
            depth: draw modules below so many levels as one node each; all operations by default.

        Returns:
            The text.
        """
        levels = _levels(self.modules)
        shut = {path: path for path, level in levels.items() if depth is not None and level == depth + 1}
        around = parents(self.modules)
        for path, parent in around.items():
            if parent in shut:
                shut[path] = shut[parent]
        place = {node.name: shut.get(node.module) for node in self.nodes}
        vertices = [Vertex(n.name, n.label, n.kind, n.phase, n.bad, n.module) for n in self.nodes if place[n.name] is None]
        for path in dict.fromkeys(filter(None, place.values())):
            inside = [node for node in self.nodes if place[node.name] == path]
            lines = (path, self.modules[path], f"{sum(node.kind == 'op' for node in inside)} ops")
            bad = any(node.bad for node in inside)
            vertices.append(Vertex(f"module {path}", lines, "group", "forward", bad, around[path] or ""))
        ends = {name: name if path is None else f"module {path}" for name, path in place.items()}
        edges = dict.fromkeys((ends[name], ends[n.name]) for n in self.nodes for name in n.inputs if ends[name] != ends[n.name])
        groups = {path: f"{path}: {text.partition('(')[0]}" for path, text in self.modules.items() if path not in shut}
        return dot_text(vertices, edges, self.title, groups)

    def to_svg(self, *, depth: int | None = None) -> str:
        """The graph as an SVG document.

        Args:
            depth: as of `to_dot`.

        Returns:
            The document.

        Raises:
            MissingExtraError: the `dot` program of GraphViz is not on the path.
            UnsupportedError: the graph is too large for it.
        """
        return svg_text(self.to_dot(depth=depth))

    def to_html(self, path: str | Path | None = None) -> str:
        """The graph as one page to explore: it needs nothing beside itself, no network either.

        Args:
            path: also write it there.

        Returns:
            The page.
        """
        from hesse.autodiff.graphs.html import page

        text = page(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def save(self, path: str | Path) -> Path:
        """Write the graph into a file, as its suffix says: ``.html``, ``.dot`` (or ``.gv``) or ``.svg``.

        Args:
            path: of the file.

        Returns:
            The path.

        Raises:
            StructureError: another suffix.
            MissingExtraError: an SVG without GraphViz.
        """
        path = Path(path)
        writers = {".html": self.to_html, ".dot": self.to_dot, ".gv": self.to_dot, ".svg": self.to_svg}
        if path.suffix not in writers:
            raise StructureError(
                "A graph is written in the format that the file's suffix names.",
                f"'{path.suffix}' of {path.name}",
                "one of .html, .dot, .gv, .svg",
            )
        path.write_text(writers[path.suffix](), encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        frame = html.escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{frame}" style="width: 100%; height: 640px; border: 0" title="graph"></iframe>'

    def _repr_svg_(self) -> str | None:
        try:
            return self.to_svg()
        except MissingExtraError:
            return None

    def _most_common(self) -> list[str]:
        """The most frequent operations, a line each."""
        counts = self.counts
        lines = [f"  {count:>5} x {op}" for op, count in list(counts.items())[:_MOST_COMMON]]
        rest = len(counts) - _MOST_COMMON
        return [*lines, *([f"  and {rest} other ops"] if rest > 0 else [])]


class TracedGraph(AnyGraph):
    """The graph of a function that ran; prints as a summary, draws itself in a notebook.

    Args:
        nodes: in the order in which they ran.
        title: what was traced.
        modules: what each module that was called is, by its path; an empty path for the traced module itself.
        notes: what there is to know about how it was traced.

    Example:
        >>> graph = hesse.trace_graph(model, x)  # doctest: +SKIP
        >>> print(graph)  # doctest: +SKIP
        >>> graph.find("softmax")  # doctest: +SKIP
        >>> graph.save("model.html")  # doctest: +SKIP
    """

    def __init__(self, nodes: Iterable[GraphNode], title: str, modules: Mapping[str, str], notes: Iterable[str] = ()) -> None:
        self.nodes = tuple(nodes)
        self._title, self._modules, self._notes = title, dict(modules), tuple(notes)

    @property
    def title(self) -> str:
        """What was traced."""
        return self._title

    @property
    def modules(self) -> Mapping[str, str]:
        """What each module is that was called, by its path."""
        return self._modules

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to know about how it was traced."""
        return self._notes

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        ops = [node for node in self.nodes if node.kind == "op"]
        passes = Counter(node.phase for node in ops)
        shown = ", ".join(f"{passes[order]} {order}" for order in ORDERS if passes[order])
        kinds = Counter(node.kind for node in self.nodes)
        rest = ", ".join(f"{word}s {kinds[kind]}" for kind, word in _WORDS if kinds[kind])
        count = f"{len(ops)} op{'s' * (len(ops) != 1)}"
        lines = [f"graph of {self.title}: {count}" + (f" ({shown})" if shown else ""), *([f"  {rest}"] if rest else [])]
        lines.append(f"  results of ops: {_size(sum(node.bytes for node in ops))}")
        if deep := max((path for path in self.modules if path), key=lambda path: path.count("."), default=None):
            lines.append(f"  modules {sum(map(bool, self.modules))}, the deepest {deep}: {self.modules[deep]}")
        lines += [
            f"  {len(group)} alike: {_span(group)} ({self.modules[group[0]].partition('(')[0]})"
            for group in self.twins.outermost
        ]
        if bad := self.bad:
            lines.append(f"  not finite: {len(bad)} node{'s' * (len(bad) != 1)}, the first {bad[0]}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join([*lines, *self._most_common()])


_WORDS = (
    ("input", "input"), ("parameter", "parameter"), ("buffer", "buffer"), ("constant", "constant"), ("answer", "answer"),
    ("gradient", "gradient"),
)  # fmt: skip


def _cut_out(node: GraphNode, kept: set[str]) -> GraphNode:
    inputs = tuple(name for name in node.inputs if name in kept)
    return node if inputs == node.inputs else dataclasses.replace(node, inputs=inputs)


def _texts(node: GraphNode) -> tuple[str, ...]:
    return (node.name, node.op, node.module, str(node.source or ""))


def _reached(start: str, links: Mapping[str, Iterable[str]]) -> set[str]:
    """The names that links lead to from a start."""
    found, waiting = {start}, deque([start])
    while waiting:
        for name in links[waiting.popleft()]:
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found


def _levels(modules: Mapping[str, str]) -> dict[str, int]:
    """How many modules each module is in."""
    found: dict[str, int] = {}
    for path, parent in parents(modules).items():
        found[path] = 0 if parent is None and not path else 1 if parent is None else found[parent] + 1
    return found


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _span(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]}, ..., {names[-1]}"
