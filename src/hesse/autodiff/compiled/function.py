"""`CompiledFunction`: traces by structure, guarded; whatever cannot be replayed runs directly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from hesse.autodiff.compiled.entry import Entry, mode_key
from hesse.autodiff.compiled.mode import CompileNotice
from hesse.autodiff.compiled.path import Build, Path, make_path
from hesse.autodiff.compiled.pins import Pins
from hesse.autodiff.compiled.profile import Profile
from hesse.autodiff.compiled.rebuild import separate
from hesse.autodiff.compiled.replay import Deviation
from hesse.autodiff.compiled.state import StateRecorder
from hesse.autodiff.compiled.trace import Trace, record
from hesse.autodiff.compiled.undo import Undo, random_states
from hesse.autodiff.compiled.unrecordable import Unrecordable
from hesse.autodiff.recording import inside_functorch
from hesse.autodiff.source_lines import warn_user

CompileMode = Literal["replay", "native"]
_MOST_KINDS = 64
_MOST_PATHS = 32
_MOST_UNREPEATED = 32
_ATTEMPTS = 2
_MOST_IRREGULAR = 3
_MOST_DISTURBED = 100
_PATIENCE = 12  # traces without a replay in between, after which a function is left alone


class _Kind:
    """Calls of one structure: how they are recognized, and the paths recorded for them."""

    def __init__(self, key: Any, entry: Entry) -> None:
        self.key, self.entry = key, entry
        self.holds_objects = bool(entry.objects)  # of the user's, for as long as it is there itself
        self.paths: list[Path] = []
        self.direct = ""  # why such calls are not compiled
        self.refusals = 0  # runs whose Python state could not be guarded
        self.irregular = 0  # runs since the last record that were not like those to come
        self.fruitless = 0  # traces since the last replay
        self.disturbed = 0  # runs of which no record was made, since other threads changed what they read


class CompiledFunction:
    """A function that is traced once for every kind of call, and replayed.

    Args:
        run: what is recorded: takes the arguments, returns a tree of tensors.
        f: the user's function in it, whose Python state is guarded.
        mode: "replay" or "native".
        variables: positions of the arguments that `run` differentiates; their Python floats become inputs.
        signature: ``signature(*args, **kwargs)``: calls with different values share no trace; None runs directly.
        profile: counters.

    A call compares the structure of the arguments, their shapes and dtypes, and every Python value that the function read when
    it was recorded; then it runs the recorded operations, and compares each value that Python read from a tensor. What differs
    is recorded as another path. The first result of each path is that of the direct run, against which the compiled one is
    checked. Two threads may call it.

    Attributes:
        fixed: tensors that `run` closes over and that never change, by their `id`; what follows from them alone is computed
            once. None: there are none.
        watches: which of the tensors that the function closes over a path holds for with the values of its recording only (set
            it before the first call). None: it holds for any values, as long as what Python reads of them is the same.
        looks: whether `run` itself, not only the function, asks tensors whether they are the same and whether they require grad
            (set it before the first call).
        moved: told dtypes and shapes where other values are found in such tensors; what is recorded next takes its course.
        disturbances: says how often other threads have changed what `run` reads, for a while. A run that was disturbed is
            recorded another time. None: no thread does.
        notice: told once why something does not run as it was asked to; by default a `CompileNotice` says it.
    """

    def __init__(
        self, run: Callable[..., Any], f: Callable[..., Any], *, mode: CompileMode, variables: Sequence[int] = (0,),
        signature: Callable[..., Any] | None = None, profile: Profile | None = None,
    ) -> None:  # fmt: skip
        self._run, self._f = run, f
        self._variables, self._signature = tuple(variables), signature
        self.profile = Profile("off") if profile is None else profile
        self.fixed: Mapping[int, Tensor] | None = None
        self.watches: Callable[[Tensor], bool] | None = None
        self.looks = False
        self.moved: Callable[[list[str]], None] | None = None
        self.disturbances: Callable[[], int] | None = None
        self.notice: Callable[[str], None] = self._warn
        self._kinds: list[_Kind] = []
        self._lock = threading.RLock()
        self._noted: set[str] = set()
        note = self.profile.op if self.profile.detailed else None
        self._build = Build(mode == "native", self._notice, note)
        self._unrepeated = 0  # kinds recorded since the last replay
        self._made = 0  # recordings

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``run(*args, **kwargs)`` returns."""
        if is_inside_other_tracer():
            return self._run(*args, **kwargs)
        key = mode_key() if self._signature is None else (self._signature(*args, **kwargs), *mode_key())
        if key[0] is None:
            return self._directly(args, kwargs, "the signature is None")
        made = self._made
        kind, found = self._found(key, args, kwargs)
        if found is not _MISSED:
            return found
        with self._lock:
            if made != self._made:  # another thread recorded something meanwhile
                kind, found = self._found(key, args, kwargs)
            return self._recorded(key, args, kwargs, kind) if found is _MISSED else found

    def _found(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[_Kind | None, Any]:
        """The kind of a call, and its result or `_MISSED`."""
        for kind in self._kinds:
            if kind.key == key and (inputs := kind.entry.gather(args, kwargs)) is not None:
                return kind, self._directly(args, kwargs, kind.direct) if kind.direct else self._replayed(kind, inputs)
        return None, _MISSED

    def path(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Path:
        """The path that a call takes, recorded if need be.

        Raises:
            Unrecordable: the call runs directly.
        """
        self(args, kwargs)
        key = mode_key() if self._signature is None else (self._signature(*args, **kwargs), *mode_key())
        for kind in self._kinds:
            if kind.key == key and kind.entry.gather(args, kwargs) is not None:
                if kind.direct or not kind.paths:
                    raise Unrecordable(kind.direct or "nothing was recorded")
                return kind.paths[0]
        raise Unrecordable("nothing was recorded")

    def paths(self) -> list[Path]:
        """All paths that were recorded."""
        return [path for kind in self._kinds for path in kind.paths]

    @property
    def direct(self) -> str:
        """Why calls of some kind run directly; empty where none does."""
        return next((kind.direct for kind in self._kinds if kind.direct), "")

    def _directly(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> Any:
        self.profile.fell_back(reason)
        start = time.perf_counter()
        result = self._run(*args, **kwargs)
        self.profile.ran(time.perf_counter() - start)
        return result

    def _replayed(self, kind: _Kind, inputs: list[Tensor]) -> Any:
        """The result of the first path whose guards and reads hold, or `_MISSED`."""
        start = time.perf_counter() if self.profile.active else 0.0
        left: list[tuple[Path, Deviation]] = []
        for path in kind.paths:
            captured = path.captured(inputs)
            if captured is None or any(path.contradicts(other, deviation) for other, deviation in left):
                continue
            if path.pins is not None and (moved := path.pins.changed(captured)):
                if self.moved is not None:
                    self.moved(moved)
                continue
            everything = [*inputs, *captured]
            if not path.shares_memory_alike(everything):
                continue
            undo = Undo(path.trace, everything) if path.may_leave else None
            try:
                outputs = path.runner(everything)
            except Exception:  # a guard on the wrong side of a branch, or the user's own error: the direct run tells
                outputs = None
            if outputs is not None and not isinstance(outputs, Deviation):
                kind.fruitless = self._unrepeated = 0
                if path is not kind.paths[0]:
                    kind.paths = [path, *(p for p in kind.paths if p is not path)]  # a new list: other threads may read the old
                if self.profile.active:
                    self.profile.hit()
                    self.profile.ran(time.perf_counter() - start)
                return path.rebuild(outputs)
            if undo is not None:
                undo()
            if outputs is None:
                break
            left.append((path, outputs))
        return _MISSED

    def _recorded(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kind: _Kind | None) -> Any:
        """Run directly, and record the run; the lock is held."""
        start = time.perf_counter()
        try:
            if kind is None:
                self._require_repetition()
            entry = Entry(args, kwargs, self._variables)
            kind = _Kind(key, entry) if kind is None else kind
            roots = {**entry.objects, **entry.classes}
            recorder, random = StateRecorder(self._f, extra_roots=roots, looks=self.looks), random_states()
            self.profile.miss(_why(kind))
            before = self._disturbances()
            recorder.__enter__()  # from here on everything that runs is taken for the function's own
        except Unrecordable as error:
            self._notice(f"runs directly: {error.reason}")
            return self._directly(args, kwargs, error.reason)
        try:
            trace, result = record(lambda: self._run(*entry.args, **entry.kwargs), entry.inputs, self.fixed)
        finally:
            recorder.__exit__(None, None, None)
        trace.input_names, trace.identified = entry.names, tuple(entry.identified)
        if not entry.is_unchanged(args, kwargs):
            trace.refused = trace.refused or "it changes what it is given as an argument"
        self.profile.traced(time.perf_counter() - start, len(trace.graph.nodes))
        start = time.perf_counter()
        outside = [*trace.inputs, *trace.captured]
        if self._disturbances() != before and kind.disturbed < _MOST_DISTURBED:
            kind.disturbed += 1
        else:
            self._compile(kind, trace, recorder, result, random)
        entry.forget()
        self._made += 1
        if kind not in self._kinds:
            self._unrepeated += 1
            self._kinds = [kind, *self._kinds][:_MOST_KINDS]
        self.profile.compiled(time.perf_counter() - start)
        self.profile.ran(0.0)
        return result if kind.direct else separate(result, outside)

    def _disturbances(self) -> int:
        return 0 if self.disturbances is None else self.disturbances()

    def _compile(self, kind: _Kind, trace: Trace, recorder: StateRecorder, result: Any, random: Sequence[Tensor]) -> None:
        """Add a path to a kind of calls, or say why there can be none."""
        try:
            if trace.refused:
                raise Unrecordable(trace.refused)
            if trace.irregular:
                kind.irregular += 1
                if kind.irregular <= _MOST_IRREGULAR:
                    return
                raise Unrecordable(f"at every call {trace.irregular}")
            if trace.random and recorder.reseeds:
                raise Unrecordable("it draws random numbers and puts back the state of their generator, as checkpoints do")
            try:
                state = recorder.finish()
            except Unrecordable:
                kind.refusals += 1
                if kind.refusals < _ATTEMPTS:  # modules that are imported, attributes that are set, once
                    return
                raise
            pins = None if self.watches is None else Pins(trace.captured, self.watches)
            path = make_path(trace, state, result, random, self._build)
            path.pins = pins if pins else None
            self._keep(kind, path)
        except Unrecordable as error:
            kind.direct = error.reason
            kind.paths.clear()
            self._notice(f"runs directly: {error.reason}")

    def _require_repetition(self) -> None:
        if self._unrepeated > _MOST_UNREPEATED:
            self._kinds = [kind for kind in self._kinds if not kind.holds_objects]
            raise Unrecordable(
                f"{_MOST_UNREPEATED} calls in a row had structures, shapes or values that were never seen before"
            )

    def _keep(self, kind: _Kind, path: Path) -> None:
        kind.fruitless, kind.irregular = kind.fruitless + 1, 0
        if kind.fruitless > _PATIENCE:
            raise Unrecordable(f"{kind.fruitless} calls in a row differed from what was recorded, the last time in "
                               f"{kind.paths[0].difference()}")  # fmt: skip
        kind.paths = [path, *kind.paths][:_MOST_PATHS]

    def _notice(self, text: str) -> None:
        """Say once that something does not run as it was asked to, and why."""
        if text not in self._noted:
            self._noted.add(text)
            self.notice(text)

    def _warn(self, text: str) -> None:
        name = getattr(self._f, "__qualname__", type(self._f).__name__)
        warn_user(f"{name} {text}", CompileNotice)


_MISSED = object()


def is_inside_other_tracer() -> bool:
    """Whether someone watches the operations of this thread (an outer trace, a `torch.func` transform)."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or (torch._C._len_torch_function_stack() and _are_functions_changed())
        or inside_functorch()
        or torch.compiler.is_compiling()
    )


def _are_functions_changed() -> bool:
    return any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())


def _why(kind: _Kind | None) -> str:
    if kind is None or not kind.paths:
        return "a new structure, shape or dtype"
    return kind.paths[0].difference()
