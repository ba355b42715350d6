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
_QUERIES = {"size", "dim", "numel", "is_floating_point", "is_complex", "requires_grad_", "_set_grad_enabled"}


@dataclass(frozen=True)
class Cut:
    """A call that takes something differentiable and returns something that is not.

    Attributes:
        op: name of the function or method.
        place: ``file:line`` of the user's code, and the line.
        harmless: the derivative really is zero there (comparisons, argmax, rounding to integers).
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

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        touched = [t for t in _tensors((args, kwargs)) if id(t) in self.kept]
        if not touched:
            return result
        name = _name(func)
        made = list(_tensors(result))
        for tensor in made:
            self.kept[id(tensor)] = tensor
        connected = any(t.requires_grad for t in touched)
        if connected and _loses(name, result, made):
            harmless = bool(made) and all(not t.dtype.is_floating_point and not t.dtype.is_complex for t in made)
            no_grad = bool(made) and not harmless and not torch.is_grad_enabled()
            self.cuts.append(Cut(name, _place(), harmless, no_grad))
        return result


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
    """Why an output does not depend on the variables: the cuts met, and whether the value depends on them at all."""

    cuts: tuple[Cut, ...]
    depends: bool
    new_leaf: bool

    @property
    def is_zero(self) -> bool:
        """Whether the derivative really is zero: no dependence, or only through piecewise constant functions."""
        return not self.new_leaf and all(cut.harmless for cut in self.cuts)

    def __str__(self) -> str:
        if self.new_leaf:
            return "the result is a new leaf of the graph, re-wrapped by Variable(...) or torch.tensor(..., requires_grad=True)"
        harmful = [cut for cut in self.cuts if not cut.harmless]
        if harmful:
            return f"the graph was cut by {harmful[-1]}"
        if self.cuts:
            return f"it depends on them only through {self.cuts[-1]}, which is piecewise constant"
        return "it does not use them"


def diagnose(run: Callable[[], Tree], inputs: Sequence[Tensor]) -> Diagnosis:
    """Run once more and say where the dependence on `inputs` was lost."""
    with torch.enable_grad(), _Follow(inputs) as follow:
        value = run()
    outputs = [leaf for leaf in tree.leaves(value) if isinstance(leaf, Tensor)]
    depends = any(id(y) in follow.kept for y in outputs)
    own = {id(leaf) for leaf in inputs}
    roots = [y.grad_fn for y in outputs if y.grad_fn is not None]
    leaves = [y for y in outputs if y.requires_grad and y.grad_fn is None]
    leaves += [node.variable for node in nodes(roots) if hasattr(node, "variable")]
    new_leaf = not depends and any(id(leaf) not in own and not isinstance(leaf, Parameter) for leaf in leaves)
    return Diagnosis(tuple(follow.cuts), depends, new_leaf)
