"""The `torch.autograd.Function` behind a custom derivative."""

from __future__ import annotations

from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor, maybe_current_level, maybe_get_level
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from hesse.autodiff.custom_call import Call, name_of, pack
from hesse.autodiff.custom_rules import Rules, pull_back, push_forward
from hesse.autodiff.recording import nodes
from hesse.core.errors import LeafError, StructureError, UnsupportedError


def make_function(rules: Rules) -> type[torch.autograd.Function]:
    """A new autograd function, named like the user's, that asks `rules` for its derivatives.

    Its `apply` takes a `Call` and that call's tensors, and returns the tensors of the result as a tuple.
    """

    def forward(call: Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        return _run(rules.name, call, tensors)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        call, *tensors = inputs
        ctx.call = call
        ctx.mark_non_differentiable(*(y for y in output if not (y.is_floating_point() or y.is_complex())))
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        call, saved, needed = ctx.call, ctx.saved_tensors, ctx.needs_input_grad[1:]
        count = len(needed)
        if not rules.once_differentiable:
            return None, *pull_back(rules, call, saved[:count], saved[count:], cotangents, needed)
        with torch.no_grad():
            own = [t.detach() for t in saved]
            gradients = pull_back(rules, call, own[:count], own[count:], [g.detach() for g in cotangents], needed)
        return None, *_once(rules.name, gradients, [*saved, *cotangents])

    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, count = ctx.saved_tensors, len(tangents)
        _require_first_push(rules.name, ctx.call)
        return tuple(push_forward(rules, ctx.call, saved[:count], saved[count:], tangents))

    members = {"forward": forward, "setup_context": setup_context, "backward": backward, "jvp": jvp}
    forward.__signature__ = signature(forward)  # pyright: ignore[reportFunctionMemberAccess] - torch asks for it at each call
    body = {name: staticmethod(member) for name, member in members.items()}
    return type(rules.name, (torch.autograd.Function,), {**body, "generate_vmap_rule": True})


def _run(name: str, call: Call, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    versions = [t._version for t in tensors]
    own = [t.detach() for t in tensors]
    watch = _Transformed() if call.followed and call.transformed else nullcontext()
    try:
        with torch.set_grad_enabled(call.followed), watch:  # so that whatever else requires gradients is seen in the outputs
            outputs, packing = pack(call.pass_to(call.function, (), own))
    except _TrackedError as error:
        raise _refused(name, call, error.tensor) from None
    if not outputs or packing.constants:
        raise StructureError(
            f"{name} with a custom derivative returns tensors.",
            f"a Python {type(packing.constants[0][1]).__name__}" if packing.constants else "none",
            "return a tensor, or a tuple or dict of tensors",
        )
    for index, span in call.spans():
        if any(t._version != version for t, version in zip(tensors[span], versions[span], strict=True)):
            raise UnsupportedError(
                f"{name} with a custom derivative leaves its arguments as they are.",
                f"it changed {call.label(index)} in place",
                "work on a clone",
            )
    if any(_plain(y).requires_grad for y in outputs):
        _require_only_own(name, call, own, outputs)
    call.output = packing
    given = set(map(id, own))
    return tuple(y.detach().clone() if id(y) in given or id(y._base) in given else y.detach() for y in outputs)


def _require_only_own(name: str, call: Call, own: list[Tensor], outputs: list[Tensor]) -> None:
    """Refuse a function that reads tensors which require gradients and which no rule could serve.

    Tensors that it makes itself, in an optimization of its own for instance, are others at each run.
    """
    with torch.enable_grad():
        again, _ = pack(call.pass_to(call.function, (), own))
    known = {id(leaf) for leaf in _leaves(again)}
    for leaf in _leaves(outputs):
        if id(leaf) in known:
            raise _refused(name, call, leaf)


class _Transformed(TorchFunctionMode):
    """Refuses tensors that a `torch.func` transform around the call differentiates by, which no output shows.

    The function runs below the transforms, where their tensors count as constants.
    """

    def __init__(self) -> None:
        super().__init__()
        self._level = maybe_current_level() or 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            tensor = leaf
            while isinstance(tensor, Tensor) and maybe_get_level(tensor) > self._level:
                if tensor.requires_grad and getattr(func, "__name__", "") != "detach":
                    raise _TrackedError(leaf)
                tensor = get_unwrapped(tensor)
        return func(*args, **(kwargs or {}))


class _TrackedError(Exception):
    """A tensor that was met; no TypeError, which Python's operators take for an answer."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor


def _refused(name: str, call: Call, tensor: Tensor) -> LeafError:
    found = name_of(tensor, call.function)
    return LeafError(
        f"The custom derivative of {name} covers its arguments.",
        f"it also reads {found}, which requires gradients and would get none",
        f"pass {found} as an argument, or detach it",
    )


def _leaves(outputs: list[Tensor]) -> list[Tensor]:
    """The leaves that outputs hang on."""
    plain = [_plain(y) for y in outputs]
    found = [node.variable for node in nodes([y.grad_fn for y in plain]) if hasattr(node, "variable")]
    return [*found, *(y for y in plain if y.requires_grad and y.grad_fn is None)]


def _plain(tensor: Tensor) -> Tensor:
    """The tensor inside the wrappers of `torch.func` transforms."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


def _require_first_push(name: str, call: Call) -> None:
    """Refuse forward mode inside forward mode: torch gives the inner rule no tangents, and the result would be zero."""
    if call.pushed:
        raise UnsupportedError(
            f"Forward mode inside forward mode was asked for, with a derivative of {name} at both levels.",
            "torch drops the tangents of one level inside a custom rule",
            "use reverse mode for the inner derivative: hesse.hessian, torch.func.hessian, or jacfwd of jacrev",
        )
    call.pushed = True


class _Once(torch.autograd.Function):
    """The identity on gradients that must not be differentiated again; hangs on all that they were computed from."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        _refuse(ctx.name)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        _refuse(ctx.name)


def _refuse(name: str) -> None:
    raise UnsupportedError(
        f"A second derivative of {name} was asked for.",
        "its gradient is marked once_differentiable",
        "write its rule in differentiable torch functions and leave the mark away",
    )


def _once(name: str, gradients: list[Tensor | None], sources: list[Tensor]) -> list[Tensor | None]:
    present = [g for g in gradients if g is not None]
    if not torch.is_grad_enabled() or not present:
        return gradients
    followed = [t for t in sources if t.is_floating_point() or t.is_complex()]
    guarded = iter(_Once.apply(name, len(present), *present, *followed))
    return [None if g is None else next(guarded) for g in gradients]
