"""The Python state that a function reads, recorded in one run and guarded afterwards."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FunctionType, TracebackType
from typing import Any

from torch import Tensor

from hesse.autodiff.compiled.state_checks import Checks
from hesse.autodiff.compiled.state_classes import global_hooks
from hesse.autodiff.compiled.state_lost import complete
from hesse.autodiff.compiled.state_objects import distinct_tensors
from hesse.autodiff.compiled.state_snapshot import Snapshot
from hesse.autodiff.compiled.state_walk import Again, Walker
from hesse.autodiff.compiled.state_watch import Watch
from hesse.autodiff.compiled.unrecordable import Unrecordable

__all__ = ["PythonState", "StateRecorder", "Unrecordable"]


class PythonState:
    """Everything Python that one run of a function could have read: closed-over tensors, and guards of all the rest.

    Args:
        checks: the guards.
        compares_identity: whether code that ran asks which objects are the same.
    """

    def __init__(self, checks: Checks, *, compares_identity: bool = False) -> None:
        self._checks = checks
        self.compares_identity = compares_identity
        self.tensors: list[tuple[str, Tensor]] = checks.tensors
        self.check: Callable[[], list[Tensor] | None] = checks.build()
        self._report: Callable[[], tuple[int, Any] | None] | None = None

    def __len__(self) -> int:
        return len(self._checks.lines)

    def forget_tensors(self) -> None:
        """Let go of the tensors that were met; the check finds the present ones by their places."""
        self.tensors.clear()

    def difference(self) -> str:
        """Says what has changed since the run.

        Returns:
            One phrase that names the first thing that differs ("global rate changed: 0.1, now 0.2"), or "" if nothing does.
        """
        self._report = self._report or self._checks.build_report()
        found = self._report()
        return "" if found is None else self._checks.describe(*found)


class StateRecorder:
    """Records the Python state that a function reads, around one run of it.

    `with recorder: f(...)` watches the run; `recorder.finish()` gives its state.

    Args:
        f: the function, method, module or callable object.
        extra_roots: name -> object that the run is handed and that is no tree of tensors (a configuration, a module).
        looks: whether the run is one of hesse's that asks tensors whether they are the same and whether they require grad.
    """

    def __init__(self, f: Any, *, extra_roots: dict[str, Any] | None = None, looks: bool = False) -> None:
        self._looks = looks
        name = f.__name__ if isinstance(f, FunctionType) else "self"
        self._roots: dict[str, Any] = {name: f, **(extra_roots or {})}
        self._watch = Watch()
        self._snapshot: Snapshot | None = None

    def __enter__(self) -> StateRecorder:
        """Takes the state before the run and starts watching this thread.

        Raises:
            Unrecordable: another profiler is running.
        """
        self._snapshot = Snapshot({**self._roots, **global_hooks()})
        self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._watch.stop()

    @property
    def reseeds(self) -> bool:
        """Whether the run set the state of a random generator, as a checkpoint does before it computes something again."""
        return self._watch.reseeds

    def finish(self) -> PythonState:
        """The state that the run read.

        Returns:
            Its tensors and guards.

        Raises:
            Unrecordable: the run did something that a graph cannot repeat, changed what it can reach, or read something that
                cannot be watched; the reason names it.
        """
        if self._snapshot is None:
            raise Unrecordable("nothing was run")
        if self._watch.refusal is not None:
            raise Unrecordable(self._watch.refusal)
        if (changed := self._snapshot.changed()) is not None:
            raise Unrecordable(f"it changes {changed}")
        walker = self._walked()
        for value in walker.entered.values():
            if isinstance(value, (list, dict, set)) and not self._snapshot.covers(value):
                kind = type(value).__name__
                raise Unrecordable(f"it reads a {kind} that could not be compared with what it was before the run")
        return PythonState(walker.checks, compares_identity=walker.identity)

    def _walked(self) -> Walker:
        forced: dict[int, CodeType] = {}
        names: set[str] = set()
        while True:
            walker = Walker(self._watch, forced, names, looks=self._looks)
            try:
                for path, root in self._roots.items():
                    walker.root(root, path)
                complete(walker)
                distinct_tensors(walker)
            except Again:
                continue
            except RecursionError:
                raise Unrecordable("what it reads is nested too deeply to watch") from None
            return walker
