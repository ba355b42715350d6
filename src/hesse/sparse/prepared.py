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
from hesse.autodiff.recording import inside_functorch
from hesse.autodiff.variables import requires_grad
from hesse.core import tree
from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import Tag
from hesse.sparse.colored import ColoredPattern
from hesse.sparse.detect import Sparsity, sparsity
from hesse.sparse.evaluate import Evaluated, Program, Task
from hesse.sparse.explain import explanation
from hesse.sparse.layouts import Arranger, Layout

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


class SparseDerivative:
    """A sparse Jacobian or Hessian, ready to be evaluated at any point; made by `prepare_jacobian` and `prepare_hessian`.

    An evaluation runs the function and as many products as there are colors, batched, along the graph of that run. The
    operations of the second one are recorded, what follows from the colors alone is computed once, and later evaluations replay
    the rest.
    Python values that the function reads and tensors that it closes over are followed: where they change so that the record
    no longer holds, another one is made. Where a result is to be differentiated further, and inside of `torch.func`
    transforms, each evaluation runs the function. Several threads may evaluate it.

    Every evaluation that runs the function is checked by one random product (under `vmap`: the example is, once). Where masks
    and orders (`local`), or values of constants, may leave the pattern without a trace, replays are checked as well.
    Constants that the pattern was found with are watched, and the pattern is found again where one was written to.

    Attributes:
        colored: the pattern and its colors.
        in_space, out_space: of columns and rows.
        found: how the pattern was found; None where it was given.

    Args:
        task: what is computed.
        x: the example.
        found: the pattern's origin.
        mode: "off", "replay" or "native".
        tags: of operators.
    """

    def __init__(self, task: Task, x: Any, found: Sparsity | None, mode: Mode, tags: frozenset[Tag]) -> None:
        self.colored: ColoredPattern = task.colored
        self.in_space: Space = task.in_space
        self.out_space: Space = task.out_space
        self.found = found
        self._task, self._mode = task, mode
        self._example = tree.map_tree(_copied, x)
        self._program = Program(task, every_call=found is not None and (found.local or found.constants == "values"))
        self._arranger = Arranger(task.colored.pattern, task.in_space, task.out_space, tags)
        self._compiled: dict[bool, CompiledFunction] = {}
        self._lock = threading.Lock()
        self._hangs = False  # whether the last run's results hung on what the function closes over
        self._reason = ""  # why evaluations run directly

    def __call__(self, x: Any, *, layout: Layout = "coo") -> Any:
        """The value and the matrix at a point.

        Args:
            x: a tree like the one that was prepared for; its dtypes may differ.
            layout: see `Arranger.arrange`: "coo", "csr", "csc", "scipy", "dense", "blocks" or "operator".

        Returns:
            ``(value, jacobian)`` or ``(value, hessian)``, named; differentiable with respect to whatever upstream requires
            grad (under `torch.no_grad` it is not).

        Raises:
            StructureError: x or the function's value of another structure or other shapes; a pattern that misses an entry, with
                its place. NonFiniteError: NaN in x. LeafError, DeviceError, DetachedError, MemoryBudgetError: as they say.

        Cost: one run, and a product a color, which share passes; a product more where the function runs. Replayed, what is left
        of that once values that follow from the colors alone are known.
        """
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
        if self._mode != "off" and self._program.checks and self._may_replay(x):  # what is evaluated once is not recorded
            done = self._compiled_for(torch.is_grad_enabled())((x,), {})
            if torch.is_grad_enabled():
                self._hangs = done.attached
            if not done.attached or requires_grad(done.entries):  # a run that was just recorded is still attached
                self._program.check_replay(done, x)
                return done
        done = self._program(x)
        self._hangs = self._hangs and done.attached
        return done

    def _require_constants(self) -> None:
        """Find the pattern again where constants that it rests on (indices, masks) were written to."""
        found = self.found
        if found is None or not (moved := found.guard.changed()):
            return
        with self._lock, temporarily_clear_interpreter_stack():
            if self.found is not found:  # another thread has looked
                return
            kind = "hessian" if self._task.hessian else "jacobian"
            again = sparsity(self._task.f, self._example, of=kind, local=found.local, constants=found.constants)
            if not self.colored.pattern.covers(again.pattern):
                raise StructureError(
                    "A pattern holds while the indices, masks and other constants that it was found with keep their values.",
                    f"a tensor, {moved[0]}, was written to, and the derivative has entries outside of the pattern now",
                    "prepare it again",
                )
            self.found = replace(again, pattern=found.pattern)

    def _may_replay(self, x: Any) -> bool:
        if self._program.chunks > _MOST_CHUNKS or not is_in_plain_mode():
            return False
        return not torch.is_grad_enabled() or not (self._hangs or requires_grad(x))

    def _compiled_for(self, grad: bool) -> CompiledFunction:
        found = self._compiled.get(grad)
        if found is None:
            made = CompiledFunction(self._program, self._task.f, mode="native" if self._mode == "native" else "replay")
            made.fixed, made.notice = self._program.fixed, self._note
            found = self._compiled.setdefault(grad, made)
        return found

    def _note(self, reason: str) -> None:
        self._reason = reason

    def _transformed(self, x: Any) -> Evaluated:
        """Inside of a `torch.func` transform, whose tensors cannot be read."""
        if not self._program.checks:
            with temporarily_clear_interpreter_stack():
                self._program(self._example)
        return self._program(x)

    def explain(self) -> str:
        """What it costs and why: colors by mode, what made the pattern denser than it may be, how it runs, what was checked.

        Cost: no gradients; the pattern is colored in the other ways too.
        """
        return explanation(self.colored, self.found, self._running(), self._program.checks, hessian=self._task.hessian)

    def _running(self) -> str:
        if self._mode == "off":
            return "runs directly: compile='off'"
        if self._program.chunks > _MOST_CHUNKS:
            return f"runs directly: {self._program.chunks} passes, for the sake of the memory budget, are too many for a record"
        if self._hangs:
            return "runs directly: what it closes over requires grad, so that the result has to be differentiable"
        counts = [path.operations for made in list(self._compiled.values()) for path in made.paths()]
        if not counts:
            return self._reason or ("evaluated once: the next one is recorded" if self._program.checks else "not evaluated yet")
        names = " and ".join(str(count) for count in counts)
        return f"{'compiled' if self._mode == 'native' else 'replayed'}: {names} operations"

    def __repr__(self) -> str:
        return f"SparseDerivative({self.colored!r})"


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
