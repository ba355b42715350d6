"""Where a NaN counts: the loss, gradients, parameters and buffers, and what a step returns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from hesse.autodiff.events.memory import address
from hesse.autodiff.events.records import Record, checkable, facts
from hesse.autodiff.events.watching import Watch
from hesse.autodiff.graphs.modules import bare


class Names:
    """The names of parameters, buffers and what optimizers hold, told by the memory that they are in.

    Args:
        roots: modules.
        optimizers: any; a parameter of none of the modules is called by its number.
    """

    def __init__(self, roots: Iterable[nn.Module], optimizers: Iterable[Optimizer] = ()) -> None:
        self._of: dict[int, str] = {}
        for root in roots:
            for kind, named in (("", root.named_parameters()), ("buffer ", root.named_buffers())):
                for name, value in named:
                    self._call(value, kind + bare(name))
        for optimizer in optimizers:
            held = [p for group in optimizer.param_groups for p in group["params"]]
            for number, p in enumerate(held):
                self._call(p, f"parameter {number} of {type(optimizer).__name__}")
                for name, value in optimizer.state.get(p, {}).items():
                    self._call(value, f"{name} of {self.of(p)}")

    def _call(self, value: Any, name: str) -> None:
        if checkable(value):
            self._of.setdefault(address(value), name)

    def of(self, value: Any) -> str:
        """The name of a tensor; empty where it has none."""
        return self.at(address(value)) if checkable(value) else ""

    def at(self, key: int) -> str:
        """The name of the tensor whose storage has this address; empty where it has none."""
        return self._of.get(key, "")


@dataclass(frozen=True)
class Sink:
    """A result that is not finite: what it is, the record of what made it, and its tensor (a gradient's parameter)."""

    kind: str
    record: Record
    tensor: Any = None

    def name(self, names: Names) -> str:
        """The tensor's name, where it has one."""
        return names.of(self.tensor)

    def label(self, names: Names) -> str:
        """What to call it ("loss", "gradient of fc.weight", "parameter fc.weight")."""
        name = self.name(names).removeprefix(f"{self.kind} ")
        between = " of " if self.kind == "gradient" else " "
        return f"{self.kind}{between}{name}" if name else self.kind


def sinks_of(watch: Watch, roots: list[Record], returned: Any, error: BaseException | None, *, updated: bool) -> list[Sink]:
    """All results of a step that are not finite.

    Args:
        watch: what watched the step.
        roots: the records of what backward passes started from, where that was not finite.
        returned: what the step returned.
        error: what it raised; then everything counts that no later op has used.
        updated: an optimizer ran, so that gradients which it did not read and nobody kept are of no use.

    Returns:
        The sinks, those first that say most.
    """
    found = [Sink("loss", record) for record in roots]
    found += _returned(watch, returned)
    found += _gradients(watch)
    found += _state(watch)
    alive = {r.number for key, records in watch.memory.doubt.items() if watch.memory.alive(key) for r in records}
    bad = [record for record in watch.log.bad if record.offends and record.op != "input" and not record.read]
    made = [record for record in bad if record.place.order and record.number not in watch.skipped]
    found += [Sink("gradient", record) for record in made if record.number in alive or not (updated or _wrote(watch))]
    if error is not None:
        found += [Sink("value before the error", record) for record in bad] or _last(watch)
    elif not found and not watch.judge.passed and not watch.skipped:
        found += [Sink("value left over", record) for record in bad if record.number in alive]
    return found


def _wrote(watch: Watch) -> bool:
    """Whether the step wrote into a leaf of the graph: an update that the user wrote."""
    leaves = [(key, value) for key, reference in watch.outside.items() if (value := reference()) is not None]
    return any(value.requires_grad and value.is_leaf and watch.memory.changed(key) for key, value in leaves)


def _last(watch: Watch) -> list[Sink]:
    """The last value that was not finite, in a step that raised after all such were used by other ops."""
    bad = [record for record in watch.log.bad if record.offends]
    return [Sink("value before the error", record) for record in bad[-1:]]


def _spoilt(watch: Watch, value: Any) -> list[Record]:
    """The records of what is not finite in a tensor, less what is meant and what a gradient scaler skips."""
    if not checkable(value):
        return []
    doubted = watch.memory.doubt.get(address(value), [])
    found = [record for record in doubted if record.offends]
    return found if found and not facts(value).finite else []


def _returned(watch: Watch, returned: Any) -> list[Sink]:
    found = []
    for leaf in tree_leaves(returned):
        if isinstance(leaf, Tensor):
            found += [Sink("returned value", record, leaf) for record in _spoilt(watch, leaf)]
        elif isinstance(leaf, float) and not math.isfinite(leaf) and watch.items:
            found.append(Sink("returned value", watch.items[-1]))
    return found


def _gradients(watch: Watch) -> list[Sink]:
    """The `.grad` of tensors that came into the step."""
    found = []
    for reference in watch.outside.values():
        value = reference()
        if value is not None and value.requires_grad and value.is_leaf and value.grad is not None:
            found += [Sink("gradient", record, value) for record in _spoilt(watch, value.grad)]
    return found


def _state(watch: Watch) -> list[Sink]:
    """Tensors that were there before the step and that it wrote into: parameters, buffers, an optimizer's state."""
    found = []
    for key, reference in watch.outside.items():
        value = reference()
        written = [record for record in watch.memory.doubt.get(key, []) if record.offends and record.op != "input"]
        if not written or not watch.memory.alive(key) or (value is not None and facts(value).finite):
            continue
        kind = "parameter" if value is not None and value.requires_grad and value.is_leaf else "state"
        found += [Sink(kind, record, value) for record in written]
    return found
