"""`SparseDerivative`: a sparse Jacobian or Hessian, ready to be evaluated at any point."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from hesse.autodiff.compiled.function import CompiledFunction
from hesse.autodiff.compiled.mode import Mode
from hesse.autodiff.direct import is_in_plain_mode
from hesse.autodiff.recording import inside_functorch, inside_vmap
from hesse.autodiff.variables import requires_grad
from hesse.core import tree
from hesse.core.errors import StructureError, UnsupportedError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import Tag
from hesse.sparse.beside import require_beside
from hesse.sparse.colored import ColoredPattern
from hesse.sparse.detect import Sparsity, sparsity
from hesse.sparse.evaluate import Evaluated, Program, Task
from hesse.sparse.explain import explanation
from hesse.sparse.layouts import LAYOUTS, Arranger, Layout

_BATCHED = "dense", "operator"
_LONG = 300  # nodes of a function's graph, beyond which it is recorded late
_MOST_CHUNKS = 8  # passes that a record may hold one after the other


class SparseJacobian(NamedTuple):
    """A function's value and its Jacobian.

    Attributes:
        value: what ``f(x)`` returned.
        jacobian: in the layout that was asked for.
    """

    value: Tree
    jacobian: Any


class SparseHessian(NamedTuple):
    """A function's value and its Hessian.

    Attributes:
        value: what ``f(x)`` returned, 0-d.
        hessian: in the layout that was asked for.
    """

    value: Tree
    hessian: Any


class _Moved(Exception):
    """A record does not hold any more, and the pattern does."""


class SparseDerivative:
    """A sparse Jacobian or Hessian, ready to be evaluated at any point; made by `prepare_jacobian` and `prepare_hessian`.

    An evaluation runs the function and as many products as there are colors, batched, along the graph of that run. The
    operations of the second one (of a long function, of the tenth) are recorded, what follows from the colors alone is computed
    once, and later evaluations replay the rest.
    Python values that the function reads and tensors that it closes over are followed: where they change so that the record
    no longer holds, another one is made. Where a result is to be differentiated further, and inside of `torch.func`
    transforms, each evaluation runs the function. Several threads may evaluate it.

    Every evaluation that runs the function is checked by one random product (under `vmap`: the example is, once), and in the
    place of the first, second, fourth, eighth, ... replay the function is run, too. A pattern that was given is checked beside
    the first point as well. Where masks and orders (`local`), or values of constants, may leave the pattern without a trace,
    each replay is checked.
    Indices, masks and whatever else from outside of the function the pattern was found with are watched. Where other values
    stand there, the pattern is found again; if it holds still, each replay is checked from then on.

    It can be copied and pickled, if the function can be; a copy has its records to make anew.

    Attributes:
        in_space, out_space: of columns and rows.
        found: how the pattern was found; None where it was given.

    Args:
        task: what is computed.
        x: the example.
        found: the pattern's origin.
        mode: "off", "replay" or "native".
        tags: of operators.
        given: whether the user knows the pattern.
    """

    def __init__(
        self, task: Task, x: Any, found: Sparsity | None, mode: Mode, tags: frozenset[Tag], *, given: bool = False
    ) -> None:
        self.in_space: Space = task.in_space
        self.out_space: Space = task.out_space
        self.found = found
        self._task, self._mode, self._tags, self._given = task, mode, tags, given
        self._example = tree.map_tree(_copied, x)
        self._program = Program(task, every_call=found is not None and (found.local or found.constants == "values"))
        self._arranger = Arranger(task.colored.pattern, task.in_space, task.out_space, tags, memory=task.memory)
        self._compiled: dict[bool, CompiledFunction] = {}
        self._lock = threading.Lock()
        self._beside = given and not (found is not None and found.local)  # to be checked beside the first point
        self._watching = found is not None
        self._evaluations = self._replays = 0
        self._hangs = False  # whether the last run's results hung on what the function closes over
        self._reason = ""  # why evaluations run directly

    @property
    def colored(self) -> ColoredPattern:
        """The pattern and its colors: those that are in use."""
        return self._program.colored

    def __call__(self, x: Any, *, layout: Layout = "coo") -> Any:
        """The value and the matrix at a point.

        Args:
            x: a tree like the one that was prepared for; its dtypes may differ.
            layout: "coo", "csr", "csc", "bsr": a PyTorch matrix. "scipy": a SciPy array in compressed rows, on the CPU.
                "dense": a tensor. "blocks": a COO matrix for each pair of leaves. "operator": an operator that multiplies, and
                solves by a sparse factor. Under `vmap`: "dense" or "operator".

        Returns:
            ``(value, jacobian)`` or ``(value, hessian)``, named; differentiable with respect to whatever upstream requires
            grad (under `torch.no_grad` it is not).

        Raises:
            StructureError: x or the function's value of another structure or other shapes; a pattern that misses an entry, with
                its place. UnsupportedError: a sparse layout under `vmap`. NonFiniteError: NaN in x. LeafError, DeviceError,
                DetachedError, MemoryBudgetError: as they say.

        Cost: one run, and a product a color, which share passes; a product more where the function runs. Replayed, what is left
        of that once values that follow from the colors alone are known.
        """
        if layout not in _BATCHED and layout in LAYOUTS and inside_vmap():
            raise UnsupportedError(
                self._task.asked,
                f"layout={layout!r} under vmap, which has no batches of sparse tensors",
                "pass layout='dense' or layout='operator'",
            )
        self._require_constants()
        done = self._evaluated(x)
        matrix = self._arranger.arrange(done.entries, layout)
        if self._task.hessian:
            return SparseHessian(done.outputs[0].reshape(()), matrix)
        return SparseJacobian(self.out_space.rebuild(done.outputs), matrix)

    def _evaluated(self, x: Any) -> Evaluated:
        if inside_functorch():
            return self._transformed(x)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self._evaluated(x)
        self._evaluations += 1
        if self._mode != "off" and self._may_replay(x) and self._is_due():
            try:
                done = self._compiled_for(torch.is_grad_enabled())((x,), {})
            except _Moved:  # the pattern holds still; the next record is checked at each replay
                return self._run(x)
            if torch.is_grad_enabled():
                self._hangs = done.attached
            if not done.attached or requires_grad(done.entries):  # a run that was just recorded is still attached
                self._program.check_replay(done, x)
                return done
        return self._run(x)

    def _run(self, x: Any) -> Evaluated:
        done = self._program(x)
        if torch.is_grad_enabled() and not requires_grad(x):
            self._hangs = done.attached
        self._check_beside(x, done)
        return done

    def _is_due(self) -> bool:
        """Whether to record or to replay this evaluation: what is evaluated once is not recorded, and some run as a check."""
        if not self._program.checks or self._evaluations < self._first:
            return False
        if self._program.every_call or not any(made.paths() for made in self._compiled.values()):
            return True
        self._replays += 1
        return self._replays & (self._replays - 1) != 0

    @property
    def _first(self) -> int:
        """The evaluation from which on a record is made: recording takes as long as some runs, an operation 0.5 ms."""
        return 2 if self._program.graph_nodes <= _LONG else 10

    def _check_beside(self, x: Any, done: Evaluated) -> None:
        if self._beside:
            require_beside(self._task, x, done.outputs)
            self._beside = False

    def _require_constants(self) -> None:
        """Find the pattern again where constants that it rests on (indices, masks) were written to."""
        found = self.found
        if self._watching and found is not None and (moved := found.guard.changed()):
            self._look_again(found, f"a tensor, {moved[0]}, was written to")

    def _look_again(self, found: Sparsity, what: str) -> None:
        """Find the pattern with the constants as they are now; from then on, they are not watched, but each replay is checked.

        Raises:
            StructureError: it has other entries.
        """
        with self._lock, temporarily_clear_interpreter_stack():
            if self.found is not found:  # another thread has looked
                return
            kind = "hessian" if self._task.hessian else "jacobian"
            again = sparsity(self._task.f, self._example, of=kind, local=found.local, constants=found.constants)
            if not self.colored.pattern.covers(again.pattern):
                raise StructureError(
                    "A pattern holds while the indices, masks and other constants that it was found with keep their values.",
                    f"{what}, and the derivative has entries outside of the pattern now",
                    "prepare it again",
                )
            self.found = replace(again, pattern=found.pattern)
            self._check_every_call()

    def _moved(self, moved: list[str]) -> None:
        """Another index or mask stands where one stood when a path was recorded."""
        found = self.found
        if found is not None:
            self._look_again(found, f"other values stand in a tensor that it closes over, {moved[0]}")
        else:
            with self._lock:
                self._check_every_call()
        raise _Moved

    def _check_every_call(self) -> None:
        self._watching = False
        if not self._program.every_call:
            program = Program(self._task, every_call=True)
            program.checks = self._program.checks
            self._program, self._compiled = program, {}

    def _watches(self, tensor: Tensor) -> bool:
        """Whether the pattern may rest on the values of a tensor."""
        if tensor.layout is not torch.strided:
            return True
        return not tensor.is_floating_point() if self.found is None else self.found.guard.watches(tensor)

    def _may_replay(self, x: Any) -> bool:
        if self._program.chunks > _MOST_CHUNKS or not is_in_plain_mode():
            return False
        return not torch.is_grad_enabled() or not (self._hangs or requires_grad(x))

    def _compiled_for(self, grad: bool) -> CompiledFunction:
        found = self._compiled.get(grad)
        if found is None:
            made = CompiledFunction(self._program, self._task.f, mode="native" if self._mode == "native" else "replay")
            made.fixed, made.notice = self._program.fixed, self._note
            if not self._program.every_call:
                made.watches, made.moved = self._watches, self._moved
            found = self._compiled.setdefault(grad, made)
        return found

    def _note(self, reason: str) -> None:
        self._reason = reason

    def _transformed(self, x: Any) -> Evaluated:
        """Inside of a `torch.func` transform, whose tensors cannot be read."""
        if not self._program.checks:
            with temporarily_clear_interpreter_stack():
                self._check_beside(self._example, self._program(self._example))
        return self._program(x)

    def explain(self) -> str:
        """What it costs and why: colors by mode, what made the pattern denser than it may be, how it runs, what was checked.

        Cost: no gradients; the pattern is colored in the other ways too.
        """
        running = [self._running(), *([note] if (note := self._program.note) else [])]
        return explanation(self.colored, self.found, running, self._program.checks, hessian=self._task.hessian)

    def _running(self) -> str:
        if self._mode == "off":
            return "runs directly: compile='off'"
        if self._program.chunks > _MOST_CHUNKS:
            return f"runs directly: {self._program.chunks} passes, for the sake of the memory budget, are too many for a record"
        made = [self._compiled.get(grad) for grad in ((False,) if self._hangs else (False, True))]
        counts = " and ".join(str(path.operations) for m in made if m is not None for path in m.paths())
        replayed = f"{'compiled' if self._mode == 'native' else 'replayed'}: {counts} operations"
        if self._hangs:
            direct = "runs directly: what it closes over requires grad, so that the result has to be differentiable"
            if counts:
                return f"{replayed}, under torch.no_grad(); with gradients enabled it {direct}"
            return f"{direct}; evaluated under torch.no_grad(), or with requires_grad_(False), it is replayed"
        if counts:
            return replayed
        if self._reason or not self._program.checks:
            return self._reason or "not evaluated yet"
        if self._first == 2:
            return "evaluated once: the next one is recorded"
        size = self._program.graph_nodes
        return f"runs directly: the {self._first}th evaluation is recorded, which takes long ({size} nodes in the graph)"

    def __reduce__(self) -> Any:
        return _again, (self._task, self._example, self.found, self._mode, self._tags, self._given)

    def __repr__(self) -> str:
        return f"SparseDerivative({self.colored!r})"


def _again(task: Task, x: Any, found: Sparsity | None, mode: Mode, tags: frozenset[Tag], given: bool) -> SparseDerivative:
    """A copy. Its guard may watch copies of what its function closes over, so that each replay is checked instead."""
    made = SparseDerivative(task, x, found, mode, tags, given=given)
    if found is not None and len(found.guard):
        made._check_every_call()
    return made


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
