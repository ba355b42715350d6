"""What a hook is told of a NaN or an infinity: the op, its line and module, the ranges, and the chain from the cause."""

from __future__ import annotations

import linecache
import os
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.autodiff.events.records import Label, Log, Record, TensorFacts
from hesse.autodiff.graphs.dot import Vertex, dot_text
from hesse.autodiff.source_lines import Frame

Kind = Literal["nan", "inf", "overflow"]

_DRAWN = 200
_ENDS = 5


@dataclass(frozen=True, eq=False)
class NonFiniteEvent:
    """An op gave NaN or infinity; prints as a message with the line, the ranges and the chain from the cause.

    Attributes:
        op: the op's name ("aten.log.default"), or "input" for a tensor from outside.
        kind: "nan" where the output has one; "overflow" where finite inputs gave an infinity that is no pole; else "inf".
        phase: "data" for a tensor from outside; "forward", "backward", "double backward" or "optimizer".
        source: the user's line; of the forward op for ops of a backward pass.
        stack: the user's frames, innermost first.
        module: the path of the module whose call runs the op (the forward op); empty outside of modules.
        region: the function compiled with `torch.compile` that the op is in; empty where none.
        origin: a cause: no input of the op was offending.
        output: facts of the offending output: shape, dtype, range of the finite entries, counts.
        inputs: facts of the floating-point inputs before the op ran, in the order of its arguments.
        value: the offending output itself, detached; shares its memory.
        given: the inputs themselves, copied, where the watch was asked to keep them and none was written into.
    """

    op: str
    kind: Kind
    phase: Label
    source: Frame | None
    stack: tuple[Frame, ...]
    module: str
    region: str
    origin: bool
    output: TensorFacts
    inputs: tuple[TensorFacts, ...]
    value: Tensor = field(repr=False)
    given: tuple[Tensor, ...] = field(repr=False)
    record: Record = field(repr=False)
    log: Log = field(repr=False)

    @property
    def chain(self) -> tuple[str, ...]:
        """The offending ops from a cause to this one, each with its line."""
        return tuple(str(step) for step in chain_of(self.record, self.log))

    def graph(self) -> list[Record]:
        """The ops that led to the value, this one last: the nearest 200 whose records are still kept."""
        found = {self.record.number: self.record}
        waiting = deque([self.record])
        while waiting and len(found) <= _DRAWN:
            for parent in self.log.many(waiting.popleft().parents):
                if parent.number not in found:
                    found[parent.number] = parent
                    waiting.append(parent)
        return [*reversed(tuple(found.values())[1:]), self.record]

    def dot(self) -> str:
        """The graph of `graph` in the DOT language, offending values in red."""
        return dot_of(self.graph(), f"{self.kind} of {self.op}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tensors and the message to a file that `torch.load(path, weights_only=True)` reads.

        Args:
            path: the file; overwritten. It holds a dict: "text" (the message), "op", "kind", "phase", "module", "line",
                "output" (the offending tensor) and "inputs" (what the op was given, as far as it was kept).
        """
        line = "" if self.source is None else str(self.source)
        torch.save(
            {
                "text": str(self), "op": self.op, "kind": self.kind, "phase": self.phase, "module": self.module, "line": line,
                "output": self.value.clone(), "inputs": [value.clone() for value in self.given],
            },
            os.fspath(path),
        )  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{self.kind} from {self.record.title}{'' if self.origin else ', passed on'}"]
        if self.source is not None:
            lines.append(f"  {self.source}")
            text = linecache.getline(self.source.file, self.source.line).strip()
            lines += [f"    {text}"] if text else []
        lines += [f"  module: {self.module}"] if self.module else []
        lines += [f"  compiled region: {self.region} (run eagerly)"] if self.region else []
        lines.append(f"  output: {self.output}")
        lines += [f"  input {number}: {given}" for number, given in enumerate(self.inputs)]
        lines += [f"  called from {frame}" for frame in self.stack[1:]]
        chain = shortened(self.chain)
        lines += [f"  chain: {' -> '.join(chain)}"] if len(chain) > 1 else []
        return "\n".join(lines)


def chain_of(record: Record, log: Log) -> list[Record]:
    """The offending ops from the first cause of one to itself, by the shortest way that is still known."""
    before: dict[int, Record] = {}
    waiting, seen = deque([record]), {record.number}
    while waiting:
        step = waiting.popleft()
        if step.number == record.origin:
            chain = [step]
            while chain[-1].number != record.number:
                chain.append(before[chain[-1].number])
            return chain
        for cause in log.many(step.causes):
            if cause.number not in seen:
                seen.add(cause.number)
                before[cause.number] = step
                waiting.append(cause)
    return [*log.many((record.origin,)), record]


def shortened(chain: tuple[str, ...]) -> list[str]:
    """The two ends of a long chain."""
    if len(chain) <= 2 * _ENDS:
        return list(chain)
    return [*chain[:_ENDS], f"... {len(chain) - 2 * _ENDS} more ...", *chain[-_ENDS:]]


def dot_of(records: list[Record], title: str) -> str:
    """Records as a graph in the DOT language; an edge from each op to what used its output, offending ones in red."""
    names = {record.number: f"n{record.number}" for record in records}
    vertices = [_vertex(names[record.number], record) for record in records]
    edges = [(names[p], names[r.number]) for r in records for p in dict.fromkeys((*r.parents, *r.causes)) if p in names]
    return dot_text(vertices, edges, title)


def _vertex(name: str, record: Record) -> Vertex:
    phase: Any = record.phase if record.phase in ("backward", "double backward") else "forward"
    return Vertex(name, tuple(record.lines()), "input" if record.op == "input" else "op", phase, record.offends)
