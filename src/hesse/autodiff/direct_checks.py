"""What `grad` demands of a function's value: one real number, or a cotangent that fits; hanging on the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack

from hesse.autodiff.cuts import _Follow as Follow
from hesse.autodiff.cuts import diagnose
from hesse.autodiff.source_lines import warn_user
from hesse.core import tree
from hesse.core.errors import DetachedError, LeafError, NonScalarError, StructureError, UnsupportedError
from hesse.core.space import Space
from hesse.core.tree import Tree


class ZeroGradientWarning(UserWarning):
    """A function depends on its parameters through piecewise constant operations only, so that every gradient is zero."""


def require_scalar(value: Any, asked: str) -> list[Tensor]:
    """The value as the one root of a backward pass; no root where it is a Python number.

    Raises:
        NonScalarError: more or fewer numbers than one, or a complex one. LeafError: integers.
        StructureError: neither a tensor nor a number.
    """
    if not isinstance(value, Tensor):
        if isinstance(value, (int, float)):
            return []
        if isinstance(value, complex):
            raise _complex_value(asked)
        leaves = tree.leaves(value)
        found = f"the function returned {type(value).__name__}" + (f" of {len(leaves)} tensors" if leaves else "")
        remedy = "return a tensor of one element first, or a tuple that begins with it (partial_grad=True takes any tree)"
        raise StructureError(asked, found, remedy)
    if value.numel() != 1:
        remedy = "reduce it (.sum() or .mean()), or pass a cotangent: grad(f, partial_grad=True)(params, ..., cotangent)"
        raise NonScalarError(asked, f"the function returned a tensor of shape {tuple(value.shape)}", remedy)
    if value.dtype.is_floating_point:
        return [value]
    if value.dtype.is_complex:
        raise _complex_value(asked)
    raise LeafError(asked, f"the function returned {value.dtype}", "return a floating-point number")


def _complex_value(asked: str) -> NonScalarError:
    remedy = "return its .real or .abs(), or pass a cotangent (partial_grad=True)"
    return NonScalarError(asked, "the function returned a complex number, which has no steepest ascent", remedy)


def cotangent_leaves(value: Tree, cotangent: Tree, asked: str) -> tuple[list[Tensor], list[Tensor]]:
    """The leaves of a value, and those of its cotangent in the same dtypes.

    Raises:
        StructureError: they differ in nesting or shapes. LeafError: a value of integers.
    """
    space = Space.of(value)
    if not space.names:
        raise StructureError(asked, f"the function returned {type(value).__name__}", "return a tensor or a tree of tensors")
    for name, dtype in zip(space.names, space.dtypes, strict=True):
        if not (dtype.is_floating_point or dtype.is_complex):
            found = f"the function returned {dtype} at '{name or 'its value'}'"
            raise LeafError(asked, found, "return floating-point tensors")
    parts = space.check(cotangent, "cotangent")
    roots = [torch.as_tensor(y) for y in tree.leaves(value)]
    return roots, [u.to(y) for u, y in zip(parts, roots, strict=True)]


def refuse_constant(call: Callable[[Sequence[Tensor]], Any], inputs: Sequence[Tensor], asked: str) -> None:
    """Refuse a value that was cut off from the parameters; a derivative that really is zero is let through.

    Args:
        call: the function of the leaves of its parameters, run once or twice more.
        inputs: these leaves.
        asked: what is asked of hesse, for error messages.

    Raises:
        DetachedError: with the call that cut the graph and its source line.
    """

    def run() -> Any:
        outputs = call(inputs)
        return outputs[0] if isinstance(outputs, tuple) and outputs else outputs

    cuda = inputs[0].device.type == "cuda"
    with torch.random.fork_rng([inputs[0].device] if cuda else []):
        diagnosis = diagnose(run, inputs)
    if not diagnosis.is_zero:
        found = f"the value does not depend on the variables through the graph: {diagnosis}"
        remedy = "keep the computation in torch: no .item(), .data, .detach(), numpy() or new Variable between input and value"
        raise DetachedError(asked, found, remedy)
    if diagnosis.cuts:
        message = f"every gradient is zero: where the value depends on the parameters, {diagnosis}"
        warn_user(message, ZeroGradientWarning)


def is_diagnosed() -> bool:
    """Whether this run is one that looks for the place where a graph was cut."""
    return any(isinstance(mode, Follow) for mode in _get_current_function_mode_stack())


def refuse_known(error: RuntimeError, asked: str) -> None:
    """Say in words of hesse what PyTorch's message means; return where it means nothing that hesse knows.

    Raises:
        StructureError: the function changes a parameter in place. UnsupportedError: it has reentrant checkpoints.
    """
    message = str(error)
    if "leaf Variable that requires grad" in message and "in-place" in message:
        found = f"the function changes a parameter in place ({message})"
        raise StructureError(asked, found, "let it work on a copy: x.clone()") from error
    if "use_reentrant" in message:
        found = "reentrant checkpointing, which hides its inputs from the graph"
        raise UnsupportedError(asked, found, "call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)") from error
