"""What a hunt for NaN and infinity found, as a value that prints."""

from __future__ import annotations

import linecache
from dataclasses import dataclass, field
from typing import Any, Literal

from hesse.autodiff.events.nonfinite import NonFiniteEvent, chain_of, dot_of, shortened
from hesse.autodiff.events.records import Label, Log, Record, TensorFacts

_DRAWN = 200


@dataclass(eq=False)
class NonfiniteReport:
    """The first cause of a NaN or an infinity that reached a result of a training step; prints as a message.

    Attributes:
        found: whether there was one. Without, all that follows is empty.
        op: the op's name ("aten.log.default"); "input" for a tensor that came into the step.
        kind: "nan" where the output has one; "overflow" where finite inputs gave an infinity that is no pole; else "inf".
        node: of an op in a backward pass the autograd node that ran it ("SqrtBackward0", "NameBackward" for a custom function);
            empty elsewhere.
        title: the op and its phase in words ("aten.log.default (forward)"), with the operation whose derivative the op is a
            part of ("backward of sqrt (SqrtBackward0: aten.div.Tensor)").
        phase: "data" for a tensor that came into the step; "forward", "backward", "double backward" or "optimizer".
        file, line, function: the user's line; of the forward op for ops of a backward pass, of its first use for data.
        module: the path of the module whose call ran the op ("encoder.layers.3.mlp"); empty outside of modules.
        region: the function compiled with `torch.compile` that the op is in, run eagerly; empty where none.
        tensor: the name of the parameter that the optimizer spoiled, or of the tensor that came in, where known.
        sink: what it reached ("loss", "gradient of fc.weight", "parameter fc.weight", "returned value").
        output: facts of the op's output: shape, dtype, range of the finite entries, counts.
        inputs: facts of the op's floating-point inputs before it ran.
        chain: the ops from the cause to the sink, each with its line.
        event: all that is known of the cause, the tensors among it; None where the cause was not seen as an event.
        error: the exception that ended the step; None where it ran to its end.
        cone: the ops that `dot` draws.
    """

    found: bool = False
    op: str = ""
    node: str = ""
    title: str = ""
    kind: Literal["", "nan", "inf", "overflow"] = ""
    phase: Label | Literal[""] = ""
    file: str = ""
    line: int = 0
    function: str = ""
    module: str = ""
    region: str = ""
    tensor: str = ""
    sink: str = ""
    output: TensorFacts | None = None
    inputs: tuple[TensorFacts, ...] = ()
    chain: tuple[str, ...] = ()
    event: NonFiniteEvent | None = field(default=None, repr=False)
    error: BaseException | None = None
    cone: tuple[Record, ...] = field(default=(), repr=False)

    def dot(self) -> str:
        """The ops between the cause and the sink in the DOT language, with what the cause was given; offending ones in red."""
        return dot_of(list(self.cone), f"{self.kind} of {self.op}" if self.found else "nothing found")

    @property
    def text(self) -> str:
        """The message as `str()` gives it."""
        if not self.found:
            ended = f"; the step raised {_short(self.error)}" if self.error is not None else ""
            return f"no NaN or infinity reached a result of the step{ended}"
        lines = [f"{self.kind} from {self.title}, reached: {self.sink}"]
        if self.file:
            lines.append(f"  {self.file}:{self.line} in {self.function}")
            code = linecache.getline(self.file, self.line).strip()
            lines += [f"    {code}"] if code else []
        named = {"module": self.module, "tensor": self.tensor, "compiled region (run eagerly)": self.region}
        lines += [f"  {name}: {value}" for name, value in named.items() if value]
        lines += [f"  output: {self.output}"] if self.output is not None else []
        lines += [f"  input {number}: {given}" for number, given in enumerate(self.inputs)]
        if self.event is not None:
            lines += [f"  called from {frame}" for frame in self.event.stack[1:]]
        if len(self.chain) > 1:
            lines += ["  chain:", *(f"    {step}" for step in shortened(self.chain))]
        lines += [f"  the step raised {_short(self.error)}"] if self.error is not None else []
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text


def fill(
    report: NonfiniteReport, cause: Record, reached: Record, sink: str, tensor: str, event: NonFiniteEvent | None, log: Log
) -> None:
    """Say in a report what was found.

    Args:
        report: written into.
        cause: the record of the first op.
        reached: the record of what made the sink.
        sink: what the sink is called.
        tensor: see `NonfiniteReport`.
        event: the cause's event.
        log: where the ops between are looked up.
    """
    place, source, nans = cause.place, cause.place.source, bool(cause.outputs and cause.outputs[0].nans)
    report.found, report.op, report.kind, report.phase = True, cause.op, cause.kind or ("nan" if nans else "inf"), cause.phase
    report.node, report.title = cause.node, cause.title
    report.module, report.region, report.sink, report.tensor = place.module, place.region, sink, tensor
    if source is not None:
        report.file, report.line, report.function = source
    report.event, report.output = event, cause.outputs[0] if cause.outputs else None
    if event is not None and event.record is cause:
        report.inputs = event.inputs
    report.chain = tuple(str(step) for step in chain_of(reached, log))
    report.cone = tuple(_cone(cause, reached, log))


def _short(error: Any) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _cone(cause: Record, reached: Record, log: Log) -> list[Record]:
    """The ops that lead from the cause to the sink, in the order in which they ran, behind what the cause was given; only the
    shortest way where they are too many to draw."""
    found = {reached.number: reached}
    waiting = [reached]
    while waiting and len(found) <= _DRAWN:
        for step in log.many(waiting.pop().causes):
            if step.number not in found and step.origin == cause.number:
                found[step.number] = step
                waiting.append(step)
    if len(found) > _DRAWN:
        found = {step.number: step for step in chain_of(reached, log)}
    given = {parent.number: parent for parent in log.many(cause.parents)}
    return sorted({**given, **found, cause.number: cause}.values(), key=lambda record: record.number)
