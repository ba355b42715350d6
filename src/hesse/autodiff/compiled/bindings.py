"""How generated code calls an operation: PyTorch's own Python binding where there is one, which costs a third of the
overload's, and the variant that writes into a given tensor where a kernel for it exists."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch

_PLACES = ("_VariableFunctions", "_nn", "_special", "_linalg", "_fft")
_VIEW_METHODS = ("view", "view_as", "expand", "expand_as")


class Call(NamedTuple):
    """A way to call an operation.

    Attributes:
        function: to be called with the operation's arguments.
        name: of the operation, without its overload.
        out: keyword of the tensor to write into; empty where the function makes its own.
    """

    function: Callable[..., Any]
    name: str
    out: str


@cache
def out_variant(target: Any) -> tuple[Any, str] | None:
    """The overload that writes into a given tensor, and its keyword; None where the operation has none with a kernel.

    The variants that PyTorch derives by computing a new tensor and copying it are of no use, and not counted.
    """
    schema = target._schema
    if len(schema.returns) != 1 or str(schema.returns[0].type) != "Tensor" or target.namespace != "aten":
        return None
    wanted = [(a.name, str(a.type)) for a in schema.arguments]
    for name in target.overloadpacket.overloads():
        overload = getattr(target.overloadpacket, name)
        arguments = overload._schema.arguments
        outs = [a for a in arguments if a.is_out]
        if len(outs) == 1 and [(a.name, str(a.type)) for a in arguments if not a.is_out] == wanted and _has_kernel(overload):
            return overload, outs[0].name
    return None


def _has_kernel(overload: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "CPU")


@cache
def call_of(target: Any, *, into: bool, bind: bool) -> Call:
    """How to call an operation.

    Args:
        target: the overload that was recorded.
        into: write into a given tensor (`out_variant` has to be there).
        bind: use Python bindings; they choose the overload by their arguments, which has to be verified.
    """
    name = target.overloadpacket.__name__
    variant = out_variant(target) if into else None
    overload, out = variant if variant is not None else (target, "")
    binding = _binding(name, out) if bind and target.namespace == "aten" else None
    return Call(overload._op if binding is None else binding, name, out)


def _binding(name: str, out: str) -> Callable[..., Any] | None:
    if out not in ("", "out"):
        return None
    if not out and name in _VIEW_METHODS:
        return getattr(torch._C.TensorBase, name)
    for place in _PLACES:
        found = getattr(getattr(torch._C, place), name, None)
        if found is not None:
            return found
    return None


__all__ = ["Call", "call_of", "out_variant"]
