"""What a prepared derivative computes at a point: value and entries, in one program that can be recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.autodiff.compiled.unrecorded import unrecorded, unwatched
from hesse.autodiff.linearize import require_connected
from hesse.autodiff.push import unlike_reverse
from hesse.autodiff.push_rules import NoPushError
from hesse.autodiff.recording import Function, Recording, inside_functorch, nodes, record
from hesse.autodiff.second_order import gradient_recording, record_scalar
from hesse.core.errors import StructureError, UnsupportedError
from hesse.core.memory import Budget
from hesse.core.space import Space
from hesse.sparse.colored import ColoredPattern
from hesse.sparse.coloring import coloring
from hesse.sparse.entries import Entries
from hesse.sparse.verify import REMEDY, Check, Miss

JACOBIAN = "prepare_jacobian(f, x) computes sparse Jacobians of a function of floating-point tensors."
HESSIAN = "prepare_hessian(f, x) computes sparse Hessians of a function with one real value."


@dataclass(frozen=True)
class Task:
    """What is to be computed.

    Attributes:
        f: the function.
        colored: the pattern of the matrix and its colors.
        in_space, out_space: of columns and rows.
        hessian: whether it is the Hessian of f, not its Jacobian.
        memory: the budget.
        forced: the kind of the coloring was chosen by the user: no other one is taken where columns cannot be computed.
        remedy: what to do where an entry is wrong, as errors end.
    """

    f: Function
    colored: ColoredPattern
    in_space: Space
    out_space: Space
    hessian: bool
    memory: Budget | None = None
    forced: bool = False
    remedy: str = REMEDY

    @property
    def asked(self) -> str:
        """What was asked for, as errors begin."""
        return HESSIAN if self.hessian else JACOBIAN


class Evaluated(NamedTuple):
    """What the program gives: tensors, which can be recorded.

    Attributes:
        outputs: the leaves of the function's value.
        entries: ``[nnz]``, in the order of the pattern.
        expected: ``J^T u`` for the random check, where each call is checked.
        attached: whether they are to be differentiable with respect to something upstream.
    """

    outputs: list[Tensor]
    entries: Tensor
    expected: Tensor | None
    attached: bool


class Program:
    """Runs a function and its derivative's products at a point, and takes the entries from them.

    Args:
        task: what is to be computed.
        every_call: give J^T u beside the entries, so that replays can be checked as well.

    Attributes:
        checks: how often a run was checked.
        colored: the pattern and its colors in use.
        note: why these are not the task's; empty if they are.
        graph_nodes: nodes of the function's graph at the first run.

    Each run is checked by one random product: a run is what was recorded nowhere before, so that it may take another path.
    Columns are computed along the graph of the run. Where that cannot be done (an op without a second derivative), or gives
    something else than reverse mode (functions of the user's), rows are computed from then on. The function never runs twice.
    """

    def __init__(self, task: Task, *, every_call: bool) -> None:
        self.task, self.every_call = task, every_call
        self.checks, self.colored, self.note, self.graph_nodes = 0, task.colored, "", 0
        self.check = Check(task.colored.pattern, task.in_space, task.out_space)
        self._entries = Entries(task.colored, symmetric=task.hessian, memory=task.memory)
        if every_call:
            self._entries.fixed.update({id(u): u for u in self.check.cotangent})

    @property
    def fixed(self) -> Mapping[int, Tensor]:
        """Tensors that never change, by their `id`: seeds, places of entries in the products, the check's vector."""
        return self._entries.fixed

    @property
    def chunks(self) -> int:
        """Passes that the products were spread over at the last run, for the budget's sake."""
        return self._entries.chunks

    def __call__(self, x: Any) -> Evaluated:
        """Run at a point.

        Raises:
            StructureError: x or the value of another structure or shape; the random check found an entry that the pattern
                misses. UnsupportedError: columns were asked for, and cannot be computed; second derivatives that autograd
                loses in a backward of the user's. NonFiniteError, LeafError,
                DeviceError, DetachedError, MemoryBudgetError: as the names say.

        Cost: one run and a product a color; one product more for the check.
        """
        task = self.task
        task.in_space.check(x, "x")
        recording = self._recorded(x)
        outputs = [y if recording.attached else y.detach() for y in recording.outputs]
        derivative = gradient_recording(recording) if task.hessian else recording
        with torch._C._DisableAutocast():
            if inside_functorch():
                return Evaluated(outputs, self._entries(derivative), None, True)
            if not self.graph_nodes:
                self.graph_nodes = sum(1 for _ in nodes([y.grad_fn for y in recording.outputs if y.grad_fn is not None]))
            floor = _floor(recording) if task.hessian else 0.0
            entries, problem = self._tried(self._entries, derivative, floor)
            if isinstance(problem, Miss) and task.hessian:
                raise lost_second_derivatives(recording, task.asked) or self.check.error(problem, task.remedy)
            if problem is not None:
                entries = self._by_rows(derivative, problem)
            assert entries is not None
            expected = self.check.product(derivative) if self.every_call else None
        return Evaluated(outputs, entries, expected, recording.attached)

    def _tried(self, way: Entries, derivative: Recording, floor: float) -> tuple[Tensor | None, Miss | NoPushError | None]:
        """Entries, and what is wrong with them."""
        try:
            entries = way(derivative)
        except NoPushError as error:
            return None, error
        return entries, self._miss(derivative, entries, floor)

    def _by_rows(self, derivative: Recording, problem: Miss | NoPushError) -> Tensor:
        """The entries from rows, from now on, where those from columns are wrong or cannot be had.

        Raises:
            StructureError: they are wrong as well, because the pattern is. UnsupportedError: the user wants columns.
        """
        task = self.task
        if isinstance(problem, Miss) and (not self.colored.columns or not problem.is_stored):
            raise self.check.error(problem, task.remedy)
        with unwatched(), unrecorded():
            colored = coloring(self.colored.pattern, kind="row")
            way = Entries(colored, symmetric=False, memory=task.memory)
        entries, again = self._tried(way, derivative, 0.0)
        if isinstance(again, Miss):
            raise self.check.error(again, task.remedy)
        with unrecorded():
            reason = f"{problem}" if isinstance(problem, NoPushError) else unlike_reverse(derivative) or "an op"
        found = f"columns cannot be computed along the graph as reverse mode computes rows: {reason}"
        if task.forced:
            raise UnsupportedError(task.asked, found, "pass kind='row', or no kind")
        self._entries.fixed.update(way.fixed)
        way.fixed = self._entries.fixed  # the same mapping: records hold on to it
        self._entries, self.colored, self.note = way, colored, f"rows, since {found}"
        assert entries is not None
        return entries

    def _recorded(self, x: Any) -> Recording:
        task = self.task
        if task.hessian:
            return record_scalar(task.f, x, task.asked)
        recording = record(task.f, x, task.asked)
        require_connected(recording, task.asked)
        found = recording.out_space
        if found != task.out_space:
            places = f"a value in {found}, where it was in {task.out_space}"
            raise StructureError(task.asked, places, "prepare it again: the pattern is another one")
        if any(dtype.is_complex for dtype in (*recording.in_space.dtypes, *found.dtypes)):
            raise UnsupportedError(task.asked, "complex numbers", "pass and return real and imaginary parts as two leaves")
        return recording

    def _miss(self, derivative: Recording, entries: Tensor, floor: float) -> Miss | None:
        """What one random product finds wrong."""
        with unrecorded():
            columns = self.check.suspects(self.check.product(derivative), entries)
            self.checks += 1
            return self.check.miss(derivative, entries, columns, floor=floor) if columns else None

    def check_replay(self, done: Evaluated, x: Any) -> None:
        """Check a replay, where each call is to be checked.

        Raises:
            StructureError: an entry that the pattern misses.
        """
        if done.expected is None or not self.check.suspects(done.expected, done.entries):
            return
        self(x)  # which says where


def lost_second_derivatives(recording: Recording, asked: str) -> UnsupportedError | None:
    """Why a Hessian is not symmetric: a backward of the user's that autograd cannot differentiate, if there is one.

    Args:
        recording: of the function.
        asked: as errors begin.
    """
    with unrecorded():
        lost = unlike_reverse(recording)
    if not lost:
        return None
    return UnsupportedError(
        asked,
        f"a derivative that is not symmetric, since a part of it is lost in {lost}",
        "write that backward in differentiable operations; structure='dense' of hesse.hessian gives what autograd does",
    )


def _floor(recording: Recording) -> float:
    """What a second derivative may hold of rounding, where the function is constant but for that: of the value's size."""
    with unrecorded():
        value = recording.outputs[0].detach().abs().max()
        size = max((float(leaf.detach().abs().max()) for leaf in recording.inputs if leaf.numel()), default=0.0)
        return float(torch.finfo(value.dtype).eps ** 0.75 * value) / max(1.0, size) ** 2 if math.isfinite(float(value)) else 0.0
