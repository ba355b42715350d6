"""Where was the graph cut? Runs a function again, following what depends on its input by value, and names the call after
which nothing depends on it by derivative."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from hesse.autodiff.recording import nodes
from hesse.core import tree
from hesse.core.tree import Tree

_TORCH = os.path.dirname(torch.__file__)
_HESSE = os.path.dirname(os.path.dirname(__file__))
_TO_PYTHON = {"item", "tolist", "__float__", "__int__", "__bool__", "__index__", "__complex__"}
_CONSTANT = {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like"}
_CONSTANT |= {"new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}
_QUERIES = {"size", "dim", "numel", "is_floating_point", "is_complex", "requires_grad_", "_set_grad_enabled"}


@dataclass(frozen=True)
class Cut:
    """A call that takes something differentiable and returns something that is not.

    Attributes:
        op: name of the function or method.
        place: ``file:line`` of the user's code, and the line.
        harmless: the derivative really is zero there (comparisons, argmax, rounding to integers, `zeros_like`).
        no_grad: gradients were switched off.
    """

    op: str
    place: str
    harmless: bool
    no_grad: bool

    def __str__(self) -> str:
        reason = " while gradients were switched off (torch.no_grad)" if self.no_grad else ""
        return f"`{self.op}` at {self.place}{reason}"


class _Follow(TorchFunctionMode):
    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.kept: dict[int, Tensor] = {id(t): t for t in inputs}
        self.cuts: list[Cut] = []
        self.behind: dict[int, tuple[Cut, ...]] = {}  # the cuts between a tensor and the inputs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        touched = [t for t in _tensors((args, kwargs)) if id(t) in self.kept]
        if not touched:
            return result
        name = _name(func)
        made = list(_tensors(result))
        behind = tuple(dict.fromkeys(cut for t in touched for cut in self.behind.get(id(t), ())))
        connected = any(t.requires_grad for t in touched)
        if connected and _loses(name, result, made):
            integers = all(not t.dtype.is_floating_point and not t.dtype.is_complex for t in made)
            constant = name in _CONSTANT or (name == "grad" and bool((kwargs or {}).get("create_graph")))
            harmless = bool(made) and (integers or constant)  # a gradient that was to have a graph, and has none, is constant
            no_grad = bool(made) and not harmless and not torch.is_grad_enabled()
            self.cuts.append(Cut(name, _place(), harmless, no_grad))
            behind += (self.cuts[-1],)
        for tensor in made:
            self.kept[id(tensor)] = tensor
            self.behind[id(tensor)] = behind
        return result

    def blame(self, outputs: Iterable[Tensor]) -> Cut | None:
        """The cut that harms: the last one on the way to an output, or else the last one at all."""
        on_the_way = [cut for y in outputs for cut in self.behind.get(id(y), ()) if not cut.harmless]
        return next(reversed(on_the_way or [cut for cut in self.cuts if not cut.harmless]), None)


def _loses(name: str, result: Any, made: list[Tensor]) -> bool:
    if name in _QUERIES:
        return False
    if made:
        return not any(t.requires_grad for t in made)
    return name in _TO_PYTHON or name == "numpy" or name == "__array__"


def _name(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    owner = getattr(func, "__self__", None)
    return getattr(owner, "__name__", name) if name == "__get__" else name


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _place() -> str:
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith((_TORCH, _HESSE)):
            return f"{frame.filename}:{frame.lineno}" + (f" ({frame.line})" if frame.line else "")
    return "an unknown line"


@dataclass(frozen=True)
class Diagnosis:
    """Why an output does not depend on the variables.

    Attributes:
        cuts: all that were met.
        harmful: the one to mend, if any.
        new_leaf: whether the output hangs on a leaf that came into being during the run.
    """

    cuts: tuple[Cut, ...]
    harmful: Cut | None
    new_leaf: bool

    @property
    def is_zero(self) -> bool:
        """Whether the derivative really is zero: no dependence, or only through piecewise constant functions."""
        return not self.new_leaf and self.harmful is None

    def __str__(self) -> str:
        if self.new_leaf:
            after = f", after {self.harmful}" if self.harmful else ""
            return f"the result is a new leaf, re-wrapped by Variable(...) or torch.tensor(..., requires_grad=True){after}"
        if self.harmful is not None:
            return f"the graph was cut by {self.harmful}"
        if self.cuts:
            return f"it depends on them only through {self.cuts[-1]}, which is piecewise constant"
        return "it does not use them"


def diagnose(run: Callable[[], Tree], inputs: Sequence[Tensor]) -> Diagnosis:
    """Run once more and say where the dependence on `inputs` was lost."""
    with torch.enable_grad(), _Follow(inputs) as follow:
        outputs = _outputs(run)
    new_leaf = False
    if not any(id(y) in follow.kept for y in outputs):
        foreign = _foreign_leaves(outputs, inputs)
        new_leaf = bool(foreign) and _are_new(foreign, run, inputs)
    return Diagnosis(tuple(follow.cuts), follow.blame(outputs), new_leaf)


def _outputs(run: Callable[[], Tree]) -> list[Tensor]:
    return [leaf for leaf in tree.leaves(run()) if isinstance(leaf, Tensor)]


def _foreign_leaves(outputs: list[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    own = {id(leaf) for leaf in inputs}
    roots = [y.grad_fn for y in outputs if y.grad_fn is not None]
    leaves = [y for y in outputs if y.requires_grad and y.grad_fn is None]
    leaves += [node.variable for node in nodes(roots) if hasattr(node, "variable")]
    return [leaf for leaf in leaves if id(leaf) not in own and not isinstance(leaf, Parameter)]


def _are_new(leaves: list[Tensor], run: Callable[[], Tree], inputs: Sequence[Tensor]) -> bool:
    """Whether some leaf is made by the function itself: a closed-over one is met again in the next run."""
    with torch.enable_grad():
        again = {id(leaf) for leaf in _foreign_leaves(_outputs(run), inputs)}
    return any(id(leaf) not in again for leaf in leaves)
