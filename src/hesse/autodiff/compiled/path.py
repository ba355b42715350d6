"""A recorded path through a function: its guards, and what runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from hesse.autodiff.compiled.agreement import agree, largest
from hesse.autodiff.compiled.entry import tensor_check
from hesse.autodiff.compiled.native import NativeUnavailable, compile_native
from hesse.autodiff.compiled.optimize import optimize
from hesse.autodiff.compiled.pins import Pins
from hesse.autodiff.compiled.rebuild import rebuilder
from hesse.autodiff.compiled.replay import Deviation, Replay, Runner
from hesse.autodiff.compiled.state import PythonState
from hesse.autodiff.compiled.trace import Node, Trace
from hesse.autodiff.compiled.undo import Rewind
from hesse.autodiff.compiled.unrecordable import Unrecordable
from hesse.autodiff.dispatching import LightMode


class Path:
    """A trace with its guards.

    Attributes:
        trace: the operations.
        runner: runs them.
        code: what runs, as text.
        input_names: what people call the inputs and the closed-over tensors.
        may_leave: whether a run may find out, after it changed something outside, that it is on the wrong path.
        pins: closed-over tensors whose values it holds for; None: for any.
    """

    pins: Pins | None = None

    def __init__(self, trace: Trace, state: PythonState, runner: Runner, code: str) -> None:
        self.trace, self.runner, self.code = trace, runner, code
        self._state = state
        writes = bool(trace.aliases.written & trace.aliases.external)
        self.may_leave = trace.random or writes
        self._place = _memory if not trace.compares_memory else _places
        self._memory = self._place([*trace.inputs, *trace.captured]) if writes or trace.compares_memory else None
        found = {id(tensor): index for index, (_, tensor) in enumerate(state.tensors)}
        missing = [t for t in trace.captured if id(t) not in found]
        if missing:
            shape = list(missing[0].shape)
            raise Unrecordable(
                f"it uses a tensor of shape {shape} that came neither from its arguments nor from a name it reads"
            )
        self.input_names = [*trace.input_names, *(state.tensors[found[id(t)]][0] for t in trace.captured)]
        self._positions = [found[id(t)] for t in trace.captured]
        self._fits = _captured_check(trace.captured)
        self._same = [(i, found[id(t)]) for i, t in enumerate(trace.inputs) if id(t) in found]
        self._identified = trace.identified if state.compares_identity else ()
        self._different = len(self._identified) + len(state.tensors) - len(self._same)
        state.forget_tensors()
        assert trace.structure is not None
        self._rebuild = rebuilder(*trace.structure)

    def captured(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """The closed-over tensors as they are now, or None where something that the function read has changed.

        Args:
            inputs: those of the call. One that was closed over as well in the recorded run has to be so now.
        """
        now = self._state.check()
        if now is None or any(inputs[i] is not now[p] for i, p in self._same):
            return None
        if self._identified and len({id(inputs[i]) for i in self._identified}.union(map(id, now))) != self._different:
            return None
        tensors = [now[p] for p in self._positions]
        return tensors if self._fits(tensors) else None

    def shares_memory_alike(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors share memory among themselves as the recorded ones did, where that makes a difference."""
        return self._memory is None or self._place(tensors) == self._memory

    @property
    def operations(self) -> int:
        """How many operations a replay calls."""
        return sum(node.op == "call_function" for node in self.trace.graph.nodes)

    def result_count(self, part: int) -> int:
        """How many tensors stand in one part of the tuple that the function returns."""
        assert self.trace.structure is not None
        return self.trace.structure[0].children()[part].num_leaves

    def difference(self) -> str:
        """What has changed since the path was recorded, for notices and profiles."""
        return self._state.difference() or "a value that Python read from a tensor"

    def contradicts(self, other: Path, deviation: Deviation) -> bool:
        """Whether this path is known to be wrong, after another one was left."""
        mine, its = self.trace.reads, other.trace.reads
        count = deviation.index
        if len(mine) <= count or any(a.expected != b.expected for a, b in zip(mine[:count], its[:count], strict=True)):
            return False
        return not mine[count].agrees(deviation.found)

    def rebuild(self, outputs: list[Tensor]) -> Any:
        """What the function returns, from its tensors."""
        return self._rebuild(outputs)


@dataclass(frozen=True)
class Build:
    """How paths are made to run.

    Attributes:
        native: whether they are compiled to native code where that can be done.
        notice: told why where it cannot.
        note: told how long each operation of a replay took; None to measure nothing.
    """

    native: bool
    notice: Callable[[str], None]
    note: Callable[[Node, float], None] | None = None


def make_path(trace: Trace, state: PythonState, result: Any, random: Sequence[Tensor], build: Build) -> Path:
    """Optimize a trace, generate what runs it, and check that against the direct run.

    Args:
        trace: the recording.
        state: the Python values that were read.
        result: what the direct run returned.
        random: states of the random generators before it.
        build: what is to be generated.

    Raises:
        Unrecordable: the compiled result differs from the direct one, or a closed-over tensor has no name.
    """
    simplify(trace)
    inputs = [*trace.inputs, *trace.captured]
    reference = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    places = zip(inputs, (n for n in trace.graph.nodes if n.op == "placeholder"), strict=True)
    changed = [t for t, place in places if trace.aliases.group(place) in trace.aliases.written]
    direct, rewind = _Direct(reference, changed, [t.detach().clone() for t in changed]), Rewind(trace, random)
    replay = _replay(trace, inputs, rewind)
    path = Path(trace, state, replay, replay.code)
    _verify(replay, inputs, direct, rewind)
    if build.native:
        try:
            runner, code = compile_native(trace)
            _verify(runner, inputs, direct, rewind)
            path.runner, path.code = runner, code
        except NativeUnavailable as error:
            build.notice(f"is replayed instead of compiled: {error.reason}")
        except Unrecordable as error:
            build.notice(f"is replayed instead of compiled: of the native code, {error.reason}")
    elif build.note is not None:
        path.runner = Replay(trace, bind=replay.bound, note=build.note)
    trace.inputs, trace.captured, trace.before = [], [], {}  # nothing of the user's is kept alive
    return path


def simplify(trace: Trace) -> None:
    """Optimize a trace.

    Raises:
        Unrecordable: the optimizer failed; the trace is of no further use.
    """
    try:
        optimize(trace)
    except Exception as error:
        raise Unrecordable(f"its record could not be simplified ({type(error).__name__}: {error})") from error


class _Names(LightMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the name of one operation."""
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **kwargs)


def _replay(trace: Trace, inputs: list[Tensor], rewind: Rewind) -> Replay:
    """A replay whose Python bindings were seen to call the recorded operations; by overloads where they did not."""
    bound, seen = Replay(trace), _Names()
    try:
        with rewind(), seen:
            bound(inputs)
    except Exception:  # of whatever kind: the plain replay is checked next, and refused if it fails too
        seen.names.clear()
    return bound if seen.names == bound.operations else Replay(trace, bind=False)


@dataclass(frozen=True)
class _Direct:
    """What the direct run gave: its results, and the inputs that it wrote to, with the values that they had then."""

    results: list[Tensor]
    changed: list[Tensor]
    values: list[Tensor]


def _verify(runner: Runner, inputs: list[Tensor], direct: _Direct, rewind: Rewind) -> None:
    """Run compiled code from where the direct run began; it has to give and to write the same."""
    with rewind():
        try:
            found = runner(inputs)
        except Exception as error:
            raise Unrecordable(f"the compiled code failed ({type(error).__name__}: {error})") from error
        if isinstance(found, Deviation):
            raise Unrecordable("a value that Python reads from a tensor differs between two runs of the same call")
        found = [*found, *(t.detach().clone() for t in direct.changed)]
    scale = max((largest(t) for t in (*inputs, *direct.results)), default=0.0)
    for mine, its in zip(found, (*direct.results, *direct.values), strict=True):
        if not agree(mine, its.detach(), scale):
            raise Unrecordable("the compiled result differs from the direct one")


def _memory(tensors: Sequence[Tensor]) -> list[int]:
    """For each tensor, the first one that lies in the same storage."""
    first: dict[int, int] = {}
    return [first.setdefault(t.untyped_storage().data_ptr(), index) for index, t in enumerate(tensors)]


def _places(tensors: Sequence[Tensor]) -> list[Any]:
    """For each tensor, the first one that lies in the same storage, and how far from it."""
    first: dict[int, int] = {}
    found: list[Any] = []
    for index, tensor in enumerate(tensors):
        if tensor.layout is not torch.strided:
            found.append(None)
            continue
        other = first.setdefault(tensor.untyped_storage()._cdata, index)
        found.append((other, tensor.storage_offset() - tensors[other].storage_offset()))
    return found


def _captured_check(tensors: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], bool]:
    if not tensors:
        return lambda found: True
    constants: dict[str, Any] = {}

    def keep(value: Any) -> str:
        constants[f"k{len(constants)}"] = value
        return f"k{len(constants) - 1}"

    names = [f"t{i}" for i in range(len(tensors))]
    checks = "\n        and ".join(tensor_check(t, name, keep) for t, name in zip(tensors, names, strict=True))
    source = f"def fits(found):\n    {', '.join(names)}, = found\n    return ({checks})\n"
    exec(compile(source, "<hesse guards>", "exec"), constants)
    return constants["fits"]
