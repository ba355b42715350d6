"""A trace as a Python function: one line an operation, results of the middle in buffers that calls share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx

from hesse.autodiff.compiled.bindings import Call, call_of
from hesse.autodiff.compiled.buffers import Buffers
from hesse.autodiff.compiled.trace import Node, Read, Trace, getitem

Runner = Callable[[Sequence[Tensor]], "list[Tensor] | Deviation"]


class Deviation:
    """A run that left the recorded path: a read gave another value.

    Attributes:
        index: of the read.
        found: what it gave.
    """

    def __init__(self, index: int, found: Any) -> None:
        self.index, self.found = index, found


def without_casts() -> AbstractContextManager[Any]:
    """No autocast inside: the casts of a recorded run are among its operations, also where the run switched autocast off."""
    return torch._C._DisableAutocast() if torch._C._is_any_autocast_enabled() else nullcontext()


class Replay:
    """A compiled trace.

    Calling it with the inputs gives the results, or a `Deviation`. Several threads may call it: each call takes a set of
    buffers from a pool and puts it back.

    Attributes:
        code: the generated function's source.
        operations: expected names of the operations, in order.
        bound: whether Python bindings are called, where there are any.
    """

    def __init__(self, trace: Trace, *, bind: bool = True, note: Callable[[Node, float], None] | None = None) -> None:
        writer = _Writer(trace, bind, note)
        self.bound = bind
        self.code, self.operations = writer.source(), writer.operations
        namespace = dict(writer.constants)
        exec(compile(self.code, "<hesse replay>", "exec"), namespace)
        self._run = namespace["run"]
        self._buffers = writer.buffers
        self._pool: list[tuple[Tensor, ...]] = []
        written = trace.aliases.written & trace.aliases.external  # whose version counters have to move
        self._guard = torch.no_grad if written else torch._C._AutoDispatchBelowAutograd

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor] | Deviation:
        try:
            held = self._pool.pop()
        except IndexError:
            held = self._buffers.make()
        with self._guard(), without_casts():
            outputs = self._run(inputs, held)
        self._pool.append(held)
        return outputs


class _Writer:
    """Writes the function, node by node."""

    def __init__(self, trace: Trace, bind: bool, note: Callable[[Node, float], None] | None) -> None:
        self.trace, self.bind, self.note = trace, bind, note
        self.constants: dict[str, Any] = {"Deviation": Deviation}
        self.buffers = Buffers(trace)
        self.operations: list[str] = []
        self._lines: list[str] = []
        self._names: dict[Node, str] = {}
        self._known: dict[Any, str] = {}
        self._last = _last_uses(trace)
        self._reads: dict[Node, list[tuple[int, Read]]] = {}
        for index, read in enumerate(trace.reads):
            self._reads.setdefault(read.node, []).append((index, read))

    def source(self) -> str:
        """The whole text."""
        inputs = [n for n in self.trace.graph.nodes if n.op == "placeholder"]
        for index, node in enumerate(inputs):
            self._names[node] = f"i{index}"
        for node in self.trace.graph.nodes:
            self._node(node)
        head = ["def run(inputs, held):"]
        if inputs:
            head.append(f"    {', '.join(self._names[n] for n in inputs)}, = inputs")
        if self.buffers.count:
            head.append(f"    {', '.join(self.buffers.names())}, = held")
        return "\n".join([*head, *(f"    {line}" for line in self._lines)]) + "\n"

    def _node(self, node: Node) -> None:
        if node.op == "get_attr":
            self._names[node] = str(node.target)
            self.constants[str(node.target)] = self.trace.constants[str(node.target)]
        elif node.op == "call_function" and node.target is getitem:
            self._names[node] = f"n{len(self._names)}"
            self._lines.append(f"{self._names[node]} = {self._names[node.args[0]]}[{node.args[1]}]")
        elif node.op == "call_function":
            self._operation(node)
        elif node.op == "output":
            self._lines.append(f"return [{', '.join(self._names[n] for n in self.trace.results)}]")
        for index, read in self._reads.get(node, ()):
            self._read(index, read)
        self._forget(node)

    def _operation(self, node: Node) -> None:
        kept = self.buffers.name_of(node)
        if kept is not None and self.buffers.is_view(node):
            self._names[node] = kept
            return
        call: Call = call_of(node.target, into=kept is not None, bind=self.bind)
        function = self._constant(call.function, "f_" + call.name)
        written = [self._text(a) for a in node.args] + [f"{key}={self._text(a)}" for key, a in node.kwargs.items()]
        self.operations.append(call.name)
        if self.note is not None:
            self._lines.append(f"start = {self._constant(time.perf_counter, 'clock')}()")
        if kept is not None:
            self._names[node] = kept
            self._lines.append(f"{function}({', '.join([*written, f'{call.out}={kept}'])})")
        else:
            self._names[node] = f"n{len(self._names)}"
            self._lines.append(f"{self._names[node]} = {function}({', '.join(written)})")
        if self.note is not None:
            clock, noted = self._constant(time.perf_counter, "clock"), self._constant(self.note, "note")
            self.constants[f"node_{len(self.operations)}"] = node
            self._lines.append(f"{noted}(node_{len(self.operations)}, {clock}() - start)")

    def _read(self, index: int, read: Read) -> None:
        name, same = self._names[read.node], self._constant(read.agrees, "agrees")
        found = {"value": name, "shape": f"tuple({name}.shape)", "elements": f"{name}.tolist()"}[read.kind]
        self._lines.append(f"r = {found}")
        if isinstance(read.expected, (bool, int, tuple)) and read.kind != "elements":
            self._lines.append(f"if r != {read.expected!r}: return Deviation({index}, r)")
        else:
            self._lines.append(f"if not {same}(r): return Deviation({index}, r)")

    def _forget(self, node: Node) -> None:
        names = [self._names[n] for n in self._last.get(node, ()) if self._names.get(n, "").startswith("n")]
        if names:
            self._lines.append(f"{' = '.join(names)} = None")

    def _text(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self._names[value]
        if value is None or isinstance(value, (bool, int, str)):
            return repr(value)
        if isinstance(value, (list, tuple)):
            inside = ", ".join(self._text(v) for v in value)
            return f"[{inside}]" if isinstance(value, list) else f"({inside},)" if value else "()"
        return self._constant(value, "c")

    def _constant(self, value: Any, stem: str) -> str:
        try:
            key = (type(value), value if value == value and value != 0 else repr(value))
            if key in self._known:
                return self._known[key]
        except TypeError:
            key = None
        name = f"{stem}_{len(self.constants)}"
        self.constants[name] = value
        if key is not None:
            self._known[key] = name
        return name


def _last_uses(trace: Trace) -> dict[Node, list[Node]]:
    """Nodes by the node that uses them last (itself, where none does)."""
    last: dict[Node, Node] = {}
    for node in trace.graph.nodes:
        last[node] = node
        for parent in node.all_input_nodes:
            last[parent] = node
    ends: dict[Node, list[Node]] = {}
    for node, end in last.items():
        if node.op == "call_function" and end.op != "output":
            ends.setdefault(end, []).append(node)
    return ends
