"""Watch every op of a training step, forward and backward, for NaN and infinity."""

from __future__ import annotations

import linecache
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

from hesse.autodiff.dispatching import LightMode
from hesse.autodiff.events_records import Made, Record, Status, TensorFacts, checkable, entries, facts, tensors
from hesse.autodiff.graph_dot import Vertex, dot_text
from hesse.autodiff.source_lines import Frame, Phase, Place, SourceMap

_UNFILLED = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize_"}
_OVERWRITES = {"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "exponential_", "random_", "set_"}
_OVERWRITES |= {"log_normal_", "cauchy_", "geometric_", "_foreach_copy_", "_foreach_zero_"}
_MEANT = {"full", "full_like", "new_full", "fill", "fill_", "scalar_tensor", "masked_fill", "masked_fill_", "where"}
_MEANT |= {"index_put", "index_put_", "index_fill", "index_fill_", "constant_pad_nd"}
_DRAWN = 200


@dataclass(frozen=True, eq=False)
class NonFiniteEvent:
    """An op gave NaN or infinity; prints as a message with the line, the ranges and the chain from the cause.

    Attributes:
        op: the op's name ("aten.log.default"), or "input" for a tensor from outside.
        kind: "nan" where the output has one, else "inf".
        phase: "forward", or "backward" where a gradient is computed.
        source: the user's line; of the forward op for ops of a backward pass.
        stack: the user's frames, innermost first.
        origin: a cause: no input of the op was offending.
        output: facts of the offending output: shape, dtype, range of the finite entries, counts.
        inputs: facts of the floating-point inputs before the op ran, in the order of its arguments.
        value: the offending output itself, detached; shares its memory.
    """

    op: str
    kind: Literal["nan", "inf"]
    phase: Phase
    source: Frame | None
    stack: tuple[Frame, ...]
    origin: bool
    output: TensorFacts
    inputs: tuple[TensorFacts, ...]
    value: Tensor = field(repr=False)
    _record: Record = field(repr=False)
    _before: tuple[Record, ...] = field(repr=False)

    @property
    def chain(self) -> tuple[str, ...]:
        """The offending ops from a cause to this one, each with its line."""
        steps = [self._record]
        while bad := [parent for parent in steps[-1].parents if parent.offends and parent not in steps]:
            steps.append(bad[0])
        return tuple(str(step) for step in reversed(steps))

    def graph(self) -> list[Record]:
        """The ops that led to the value, this one last: the nearest 200 whose records were still kept at the event."""
        return [*reversed(self._before), self._record]

    def dot(self) -> str:
        """The graph of `graph` in the DOT language, offending values in red."""
        records = self.graph()
        names = {id(record): f"n{number}" for number, record in enumerate(records)}
        vertices = [_vertex(names[id(record)], record) for record in records]
        edges = [(names[id(p)], names[id(r)]) for r in records for p in r.parents if id(p) in names]
        return dot_text(vertices, edges, f"{self.kind} of {self.op}")

    def __str__(self) -> str:
        lines = [f"{self.kind} from {self.op} ({self.phase}){'' if self.origin else ', passed on'}"]
        if self.source is not None:
            lines.append(f"  {self.source}")
            text = linecache.getline(self.source.file, self.source.line).strip()
            lines += [f"    {text}"] if text else []
        lines.append(f"  output: {self.output}")
        lines += [f"  input {number}: {given}" for number, given in enumerate(self.inputs)]
        lines += [f"  called from {frame}" for frame in self.stack[1:]]
        chain = self.chain
        lines += [f"  chain: {' -> '.join(chain)}"] if len(chain) > 1 else []
        return "\n".join(lines)


def _vertex(name: str, record: Record) -> Vertex:
    lines = [record.op, *map(str, record.outputs)]
    lines += [] if record.place.source is None else [str(record.place.source)]
    return Vertex(name, tuple(lines), "input" if record.op == "input" else "op", record.place.phase, record.offends)


@dataclass(frozen=True)
class _Given:
    """An input of an op, what made it, and its facts: taken before an op that writes into its inputs, else when needed."""

    value: Tensor
    maker: Record | None
    status: Status | None
    before: TensorFacts | None = None

    def facts(self) -> TensorFacts:
        return facts(self.value) if self.before is None else self.before


class _Watch(LightMode):
    """Checks what every op returns or writes, and what it is given from outside."""

    def __init__(self, hook: Callable[[NonFiniteEvent], Any]) -> None:
        super().__init__()
        self.hook = hook
        self.places, self.made = SourceMap(stacks=True), Made()

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place = self.places.place()
        if func.is_view:
            return func(*args, **kwargs)
        written = _written(func, args, kwargs)
        name = func.overloadpacket.__name__
        overwritten = {id(value) for value in written} if name in _OVERWRITES or func._overloadname.endswith("out") else set()
        read = [value for value in tensors((*args, *kwargs.values())) if checkable(value) and id(value) not in overwritten]
        with _unseen():
            given = [self._met(value, place, bool(written)) for value in read]
        outputs = func(*args, **kwargs)
        results = {id(value): value for value in (*tensors(outputs), *written) if checkable(value)}
        with _unseen():
            for value in results.values():
                self._check(func, name, place, given, value, isinstance(outputs, tuple) and value is not outputs[0])
        return outputs

    def _met(self, value: Tensor, place: Place, before: bool) -> _Given:
        """An input, checked if it comes from outside and is met for the first time."""
        maker, status = self.made.get(value)
        if status == "unfilled":
            return _Given(value, maker, status, TensorFacts(tuple(value.shape), value.dtype, value.device))
        found = facts(value) if before or maker is None else None
        if maker is None and found is not None:
            status = "fine"
            if not found.finite:
                meant = not found.nans and (not value.ndim or _only_negative(value))
                status = "meant" if meant else "offends"
            maker = Record("input", place, (found,), (), status == "offends")
            self.made.put(value, maker, status)
            if status == "offends":
                self._tell(maker, value, found, (), True)
        return _Given(value, maker, status, found if before else None)

    def _check(self, func: Any, name: str, place: Place, given: list[_Given], value: Tensor, auxiliary: bool) -> None:
        """Check a result and note what made it."""
        makers = [entry.maker for entry in given if entry.maker is not None]
        if name in _UNFILLED:
            self.made.put(value, Record(str(func), place, (), makers, False), "unfilled")
            return
        found = facts(value)
        if found.finite:
            self.made.put(value, Record(str(func), place, (found,), makers, False), "fine")
            return
        inputs = tuple(entry.facts() for entry in given)
        bad = {entry.status for entry, its in zip(given, inputs, strict=True) if not its.finite}
        passed_on = "offends" in bad
        meant = not passed_on and not found.nans
        meant = meant and (name in _MEANT or "meant" in bad or (auxiliary and _only_negative(value)))
        record = Record(str(func), place, (found,), makers, not meant)
        self.made.put(value, record, "meant" if meant else "offends")
        if not meant:
            self._tell(record, value, found, inputs, not passed_on)

    def _tell(self, record: Record, value: Tensor, found: TensorFacts, inputs: tuple[TensorFacts, ...], origin: bool) -> None:
        place, kind = record.place, "nan" if found.nans else "inf"
        value, before = value.detach(), _ancestors(record)
        event = NonFiniteEvent(
            record.op, kind, place.phase, place.source, place.stack, origin, found, inputs, value, record, before
        )
        self.hook(event)


def _only_negative(value: Tensor) -> bool:
    """Whether the infinities of a tensor are negative, as in logarithms of probabilities and in masks."""
    return not bool(torch.isposinf(entries(value)).any())


def _unseen() -> AbstractContextManager[Any]:
    """Hide what checks compute from other dispatch modes (a tracer, a counter of operations)."""
    return _disable_current_modes() if _get_current_dispatch_mode_stack() else nullcontext()


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an op writes into."""
    if not func._schema.is_mutable:
        return []
    written: list[Tensor] = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += tensors(args[number] if number < len(args) else kwargs.get(argument.name))
    return written


def _ancestors(record: Record) -> tuple[Record, ...]:
    """The ops before a record that are still known, the nearest first."""
    found = {id(record): record}
    waiting = deque([record])
    while waiting and len(found) <= _DRAWN:
        for parent in waiting.popleft().parents:
            if id(parent) not in found:
                found[id(parent)] = parent
                waiting.append(parent)
    return tuple(found.values())[1:]


@contextmanager
def watching(hook: Callable[[NonFiniteEvent], Any]) -> Iterator[None]:
    """Call a hook for every op that gives NaN or infinity, forward or backward, while the block runs.

    Inputs from outside are checked when they are first met (NaN and infinities; ``-inf`` alone, as attention masks have it, is
    taken as meant), then whatever an op returns or writes. Infinities that come from an explicit constant (`full`,
    `masked_fill`, `where`) and what only passes them on are no event; a NaN made of them is. Memory that nobody has filled
    (`empty`) is not checked. Ops of other threads, and those inside a `torch.compile`d function, are not seen; nor the entries
    of tensor subclasses that wrap others.

    Args:
        hook: called with a `NonFiniteEvent`, for causes (`event.origin`) and for every value that they spoil. What it raises
            ends the block.

    Cost: a reduction and a read of two numbers for each output of each op, so a wait for the device; for small tensors on a CPU
        about ten times the op itself.
    """
    with _Watch(hook):
        yield
