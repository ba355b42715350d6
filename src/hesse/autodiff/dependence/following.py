"""Follows which inputs every element depends on, op by op, below autograd: forward, and backward where that is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.compiled.aliases import writes_of
from hesse.autodiff.dependence.bound import is_bounded, require
from hesse.autodiff.dependence.constants import Constants
from hesse.autodiff.dependence.cuts import Cuts
from hesse.autodiff.dependence.links import depending
from hesse.autodiff.dependence.memory import Memory
from hesse.autodiff.dependence.sets.base import Sets, merged
from hesse.autodiff.dependence.sets.spans import Spans
from hesse.autodiff.dispatching import LightMode
from hesse.autodiff.source_lines import SourceMap
from hesse.rules.sparsity import families
from hesse.rules.sparsity.forms import Call, Link, Same, everything, sparsity_rules

__all__ = ["Following", "families"]

_NUMBER = 16  # bytes of an element that a rule names, with a copy
_READ_AS = {"_local_scalar_dense": "a number (if, item, an index)", "index": "a boolean index", "is_nonzero": "a bool (if)"}


class Following(LightMode):
    """Runs ops and keeps book of what their results depend on.

    Args:
        memory: what is known so far.
        local: take values for what they are at this point, rather than for what they may be elsewhere.
        values: let zeros in constant factors count.

    Attributes:
        constants: what does not depend on the inputs, and which of it the pattern rests on.
        cuts: which tensors have lost their tangent; None where that is not looked at (a backward pass has no graph of its own).
        fallbacks: how often ops without a rule were taken to mix everything, by name.
        hooked: whether the user's code changes gradients on their way back.
        branches: lines of the user's code that read a value which depends on the input.
        mixers: ops at which elements met that depend on different inputs, and their lines; only for `Spans`, and the first.
    """

    def __init__(self, memory: Memory, *, local: bool, values: bool = False) -> None:
        super().__init__()
        self.memory, self.local = memory, local
        self.constants = Constants(values=values)
        self.cuts: Cuts | None = Cuts()
        self.fallbacks: Counter[str] = Counter()
        self.branches: list[str] = []
        self.hooked = False
        self.mixers: list[str] = []
        self._lines = SourceMap(stacks=False)

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op, and note what its results and what it has written depend on."""
        given = list(_tensors((*args, *kwargs.values())))
        varying = [t for t in given if self.memory.varies(t)]
        random = torch.Tag.nondeterministic_seeded in func.tags  # other values at the next run
        if torch.Tag.inplace_view in func.tags:  # another view of the same memory
            return func(*args, **kwargs)
        written = writes_of(func, args, kwargs)
        old = {id(t): self.sets(t) for t in given} if varying else {}
        result = func(*args, **kwargs)
        made = list(_tensors(result if isinstance(result, (tuple, list)) else (result,)))
        constant = [t for t in given if not self.memory.varies(t)] if varying else given
        self.constants.see(constant, [] if varying or random else [*made, *written])
        if not varying:
            if func is torch.ops.aten._local_scalar_dense.default:
                self.constants.use(given[0])
            for t in (*made, *written) if random else written:
                self.memory.put(t, None, varies=random)
            return result
        name = name_of(func)
        if name in families.READS or families.is_dynamic(name, varying):
            self.branches.append(self.place(_READ_AS.get(name, name)))
        require(0)
        new = _new(made, given)
        apart = {id(t) for t in (*new, *given)}
        if self.cuts is None or not self.cuts.passes(given, [t for t in made if id(t) not in apart], written):
            self._note(func, args, kwargs, [*new, *written], old, name)
        else:  # values without tangents; autograd takes no notice of what is written
            for t in (*new, *written):
                self.memory.note(t)
        return result

    def sets(self, tensor: Tensor) -> Sets | None:
        """The sets of a tensor's elements; None where it has no derivative."""
        return None if self.cuts is not None and tensor in self.cuts else self.memory.sets(tensor)

    def _note(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor], old: dict[int, Sets | None], name: str) -> None:
        found: list[Sets | None] = [None] * len(outputs)
        carries = any(sets is not None and sets.count for sets in old.values())
        if carries and any(y.numel() for y in outputs) and name not in families.FLAT:
            zeros = self.constants.zeros_in(self.memory, outputs)
            call = Call(func, _bound(func, args, kwargs), outputs, self._is_fixed, zeros)
            for index, operand, form in self._links(call, name):
                sets, y = old.get(id(operand)), outputs[index]
                if sets is not None and (y.is_floating_point() or y.is_complex()):
                    found[index] = merged(found[index], depending(sets, operand, y, form))
                    require(0)
        for y, sets in zip(outputs, found, strict=True):
            if isinstance(sets, Spans) and not self.mixers and sets.mixed:
                self.mixers.append(self.place(name))
            if self.cuts is not None and self.cuts.keeps(y):
                sets = merged(sets, self.memory.sets(y))
            self.memory.put(y, sets, varies=True)

    def _is_fixed(self, tensor: Tensor) -> bool:
        if self.memory.varies(tensor):
            return self.local
        self.constants.use(tensor)
        return True

    def _links(self, call: Call, name: str) -> list[Link]:
        rule = sparsity_rules.get(name)
        if rule is not None:
            if is_bounded():
                require(_NUMBER * sum(max(t.numel(), call.outputs[0].numel()) for t in call.operands))
            return rule(call)
        if torch.Tag.pointwise in call.func.tags or name in families.POINTWISE:
            return [(index, t, Same()) for index, y in enumerate(call.outputs) for t in call.operands
                    if _broadcasts(t, y)]  # fmt: skip
        self.fallbacks[name] += 1
        return everything(call)

    def place(self, name: str) -> str:
        """A name, and the line of the user's code that runs."""
        frame = self._lines.place().source
        return f"{name} at {frame}" if frame is not None else name


def sets_of(following: Following, tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> Sets:
    """The sets of several tensors, one after the other; none for what is missing."""
    joined = following.memory.none
    for t, size in zip(tensors, sizes, strict=True):
        sets = None if t is None else following.sets(t)
        joined = joined.then(joined.empty(size) if sets is None else sets)
    return joined


def name_of(func: Any) -> str:
    """The name by which rules are found: that of the op that writes elsewhere, with its library if it is not PyTorch's own."""
    packet = func.overloadpacket.__name__
    name = packet if packet.startswith("__") else packet.rstrip("_")
    return name if func.namespace == "aten" else f"{func.namespace}::{name}"


def _new(made: list[Tensor], given: list[Tensor]) -> list[Tensor]:
    """Results that are neither views, some of which (`_unsafe_view`) do not say so, nor what was written to."""
    strided = [t for t in (*made, *given) if t.layout is torch.strided]
    if len(strided) < len(made) + len(given):
        return made
    old = {t.untyped_storage()._cdata for t in given}
    return [t for t in made if t.untyped_storage()._cdata not in old]


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, those that are written only left out."""
    bound = {}
    for number, argument in enumerate(func._schema.arguments):
        value = args[number] if number < len(args) else kwargs.get(argument.name, argument.default_value)
        if not argument.is_out:
            bound[argument.name] = value
    return bound


def _broadcasts(operand: Tensor, output: Tensor) -> bool:
    """Whether an operand has a say in an output element by element (running statistics and the like do not)."""
    if operand.ndim > output.ndim:
        return False
    sizes = output.shape[output.ndim - operand.ndim :]
    return all(n in (1, m) for n, m in zip(operand.shape, sizes, strict=True))


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
