"""Why is a gradient zero? The calls at which it dies, or what kept the loss from depending on the parameters."""

from __future__ import annotations

import linecache
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hesse.autodiff.cuts import diagnose
from hesse.autodiff.direct_checks import ZeroGradientWarning
from hesse.autodiff.source_lines import user_frame
from hesse.core import tree
from hesse.core.tree import Tree
from hesse.derivatives.grad import grad

_STEPS = {"sign", "sgn", "round", "floor", "ceil", "trunc", "fix", "heaviside", "__floordiv__", "floor_divide"}
_UNUSED = "the loss does not use the parameters"
_REMEDY = (
    "use a loss that slopes wherever a prediction is wrong: hesse.nn.losses.interval for a range, "
    "binary_cross_entropy or cross_entropy for classes, margin for an order"
)


@dataclass(frozen=True)
class ZeroGradient:
    """What `explain_zero_gradient` found; printed, it is an explanation.

    Attributes:
        is_zero: whether the gradient is zero in every element of every leaf.
        reason: why it is; empty where it is not.
        zero_leaves: paths of the leaves whose gradient is zero.
    """

    is_zero: bool
    reason: str
    zero_leaves: tuple[str, ...]

    def __str__(self) -> str:
        if self.is_zero:
            remedy = "compute the loss from the parameters" if self.reason == _UNUSED else _REMEDY
            return f"The gradient is zero everywhere because {self.reason}.\n  remedy: {remedy}"
        some = f", but for {', '.join(self.zero_leaves)}" if self.zero_leaves else ""
        return f"The gradient is not zero{some}."


def explain_zero_gradient(f: Callable[..., Any], params: Tree, *args: Any, **kwargs: Any) -> ZeroGradient:
    """Why a loss teaches its parameters nothing.

    A loss that counts (predictions outside of a range, wrong classes) is piecewise constant: its gradient is zero, which is no
    error, and an optimizer stands still. So it does where every unit is saturated, and where the loss does not use the
    parameters.

    Args:
        f: the loss, ``f(params, *args, **kwargs)``, as `grad` takes it.
        params: where to look: the answer is about these values.
        *args: passed on.
        **kwargs: passed on.

    Returns:
        whether the gradient is zero, and why.

    Raises:
        DetachedError: the loss does depend on the parameters, but its graph was cut (by `.item()`, say). Others as `grad`.

    Cost: one gradient, and up to two more runs of the function.
    """
    watch = _Watch()

    def watched(*given: Any, **named: Any) -> Any:
        with watch:
            return f(*given, **named)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZeroGradientWarning)  # what it says is found out below
            grads = grad(watched)(params, *args, **kwargs).grads
    finally:
        watch.remove()
    named = tree.named_leaves(grads)
    zero = tuple(path or "the parameter" for path, leaf in named if not bool(torch.as_tensor(leaf).any()))
    if len(zero) < len(named):
        return ZeroGradient(False, "", zero)
    dead = list(dict.fromkeys(watch.dead()))
    if dead:
        return ZeroGradient(True, "; ".join(dead), zero)
    leaves, structure = tree.flatten(params)
    inputs = [torch.as_tensor(leaf).detach().requires_grad_() for leaf in leaves]
    found = diagnose(lambda: f(structure.unflatten(inputs), *args, **kwargs), inputs)
    return ZeroGradient(True, str(found).replace("it ", "the loss ", 1).replace(" them", " the parameters", 1), zero)


@dataclass
class _Call:
    """A call, and what entered and left it by derivative."""

    name: str
    place: str
    before: list[Tensor]
    after: list[Tensor]

    def __str__(self) -> str:
        why = "is piecewise constant" if self.name in _STEPS else "has derivative zero at these values"
        return f"`{self.name}` at {self.place} {why}"


class _Watch(TorchFunctionMode):
    """Follows what is computed, and notes which tensors a gradient comes back to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.watched: dict[int, Tensor] = {}  # keeps the tensors, and so their ids
        self.reached: set[int] = set()
        self.handles: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = [t for t in _tensors((args, kwargs)) if t.requires_grad]
        result = func(*args, **(kwargs or {}))
        after = [t for t in _tensors(result) if t.grad_fn is not None]
        if before and after:
            for tensor in before + after:
                self._watch(tensor)
            self.calls.append(_Call(getattr(func, "__name__", str(func)), _place(), before, after))
        return result

    def _watch(self, tensor: Tensor) -> None:
        if id(tensor) in self.watched:
            return

        def note(g: Tensor, key: int = id(tensor)) -> None:
            if bool(g.any()):
                self.reached.add(key)

        self.watched[id(tensor)] = tensor
        self.handles.append(tensor.register_hook(note))

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()

    def dead(self) -> Iterator[str]:
        """The calls that a gradient reached and did not pass."""
        for call in self.calls:
            arrived = any(id(t) in self.reached for t in call.after)
            if arrived and not any(id(t) in self.reached for t in call.before):
                yield str(call)


def _place() -> str:
    frame = user_frame()
    if frame is None:
        return "an unknown line"
    code = linecache.getline(frame.file, frame.line).strip()
    return f"{frame.file}:{frame.line}" + (f" ({code})" if code else "")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
