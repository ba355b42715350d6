"""What a prepared derivative computes at a point: value and entries, in one program that can be recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.autodiff.compiled.unrecorded import unrecorded
from hesse.autodiff.linearize import require_connected
from hesse.autodiff.recording import Function, Recording, inside_functorch, record
from hesse.autodiff.second_order import gradient_recording, record_scalar
from hesse.core.errors import StructureError, UnsupportedError
from hesse.core.memory import Budget
from hesse.core.space import Space
from hesse.sparse.colored import ColoredPattern
from hesse.sparse.entries import Entries
from hesse.sparse.verify import Check, Miss

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
    """

    f: Function
    colored: ColoredPattern
    in_space: Space
    out_space: Space
    hessian: bool
    memory: Budget | None = None

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

    Each run is checked by one random product: a run is what was recorded nowhere before, so that it may take another path.
    """

    def __init__(self, task: Task, *, every_call: bool) -> None:
        self.task, self.every_call = task, every_call
        self.checks = 0
        self.check = Check(task.colored.pattern, task.in_space, task.out_space)
        self._entries = Entries(task.colored, symmetric=task.hessian, memory=task.memory)
        self._careful = False
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
                misses. NonFiniteError, LeafError, DeviceError, DetachedError, MemoryBudgetError: as the names say.

        Cost: one run and a product a color; one product more for the check.
        """
        task = self.task
        task.in_space.check(x, "x")
        recording = self._recorded(x)
        outputs = [y if recording.attached else y.detach() for y in recording.outputs]
        derivative = gradient_recording(recording) if task.hessian else recording
        with torch._C._DisableAutocast():
            entries = self._entries(derivative, careful=self._careful)
            if inside_functorch():
                return Evaluated(outputs, entries, None, True)
            floor = _floor(recording) if task.hessian else 0.0
            miss = self._miss(derivative, entries, floor)
            if miss is not None and not self._careful:  # a graph along which tangents do not walk as they should
                self._careful = True
                entries = self._entries(derivative, careful=self._careful)
                miss = self._miss(derivative, entries, floor)
            if miss is not None:
                raise self.check.error(miss)
            expected = self.check.product(derivative) if self.every_call else None
        return Evaluated(outputs, entries, expected, recording.attached)

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


def _floor(recording: Recording) -> float:
    """What a second derivative may hold of rounding, where the function is constant but for that: of the value's size."""
    with unrecorded():
        value = recording.outputs[0].detach().abs().max()
        size = max((float(leaf.detach().abs().max()) for leaf in recording.inputs if leaf.numel()), default=0.0)
        return float(torch.finfo(value.dtype).eps ** 0.75 * value) / max(1.0, size) ** 2 if math.isfinite(float(value)) else 0.0
