"""Direct mode of `grad`: run the function, then take one backward pass through what it did.

Plain autograd is used, so that everything which trains can be differentiated. Inside a `torch.func` transform, where plain
autograd is not allowed, `torch.func.vjp` is.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import Variable
from torch.autograd.graph import _engine_run_backward
from torch.autograd.graph import log as _log
from torch.overrides import has_torch_function

from hesse.autodiff.direct_checks import cotangent_leaves, is_diagnosed, refuse_constant, refuse_known, require_scalar
from hesse.autodiff.direct_graph import hangs_on_others, has_fused_kernel
from hesse.autodiff.direct_transform import differentiate_inside_transform
from hesse.autodiff.fused import differentiable_attention, plain_recurrences
from hesse.autodiff.ownership import owned
from hesse.autodiff.plain_bags import PlainBags
from hesse.autodiff.variables import Variables, refuse_changed, refuse_devices, refuse_leaves, requires_grad
from hesse.autodiff.weight_norm import PlainWeightNorm
from hesse.core import tree
from hesse.core.errors import UnsupportedError
from hesse.core.tree import Tree

ASKED = "grad(f) differentiates the first value of a function by its parameters."
_AS_IT_IS = nullcontext()
_Way = AbstractContextManager[Any]
_engine: Any = Variable._execution_engine
_COMPILER = "torch._functorch._aot_autograd.runtime_wrappers"
_detach, _version = Tensor.detach, attrgetter("_version")
_dispatch_modes, _is_autocasting = torch._C._len_torch_dispatch_stack, torch._C._is_any_autocast_enabled
_follows, _is_inference, _ones_like = torch.is_grad_enabled, torch.is_inference_mode_enabled, torch.ones_like
_requires_grad, _is_cpu = attrgetter("requires_grad"), attrgetter("is_cpu")


@dataclass(slots=True, eq=False)
class Derivative:
    """What one differentiated run gave.

    Attributes:
        grads: one tensor for each variable leaf.
        outputs: what the function returned, detached unless `attached`.
        variables: the leaves, and how to put the gradients into their structure.
        attached: whether the results can be differentiated further.
    """

    grads: Sequence[Tensor]
    outputs: Any
    variables: Variables
    attached: bool


def differentiate(
    f: Callable[..., Any],
    argnums: Sequence[int],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    cotangent: Tree = None,
    *,
    passed: Callable[[float, float], Any] | None = None,
) -> Derivative:
    """Run a function and differentiate its first value.

    Args:
        f: returns a real number, or with a cotangent any tree of tensors; or a tuple that begins with it.
        argnums: positions of the arguments to differentiate by, none negative.
        args, kwargs: what `f` is called with.
        cotangent: like the first value; the gradient is then ``J^H u``, in PyTorch's convention. None: the value is a scalar.
        passed: told the seconds that the function and its backward pass took.

    Returns:
        The gradients and the outputs. They are attached (can be differentiated further) where gradients are switched on and
        a parameter, the cotangent or something that `f` closes over requires grad, and in forward mode. No gradient shares
        memory with another, or with a parameter.

    Raises:
        StructureError: no parameters, parameters changed in place, a cotangent that does not fit.
        LeafError: a leaf of integers or of an unknown type. DeviceError: leaves on several devices, which it mixes.
        NonScalarError: more than one number and no cotangent. DetachedError: the value was cut off from the parameters.
        UnsupportedError: inference mode, reentrant checkpoints.

    Cost: one gradient. Attached results of a function with fused kernels take one more run of it, by plain operations.
    """
    one = argnums[0] if len(argnums) == 1 else None
    variables = Variables({i: args[i] for i in argnums} if one is None else args[one], ASKED)

    def call(leaves: Sequence[Tensor]) -> Any:
        restored = variables.restore(leaves)
        if one == 0:
            return f(restored, *args[1:], **kwargs)
        given = list(args)
        for i, part in ({one: restored} if one is not None else restored).items():
            given[i] = part
        return f(*given, **kwargs)

    if peek_interpreter_stack() is not None:
        refuse_leaves(variables, ASKED)
        grads, outputs = differentiate_inside_transform(call, variables.tensors(), cotangent, ASKED)
        return Derivative(grads, outputs, variables, attached=True)
    if _is_inference():
        raise UnsupportedError(ASKED, "torch.inference_mode is on, in which nothing can be differentiated", "use torch.no_grad")
    if _follows():
        return _differentiate(call, variables, cotangent, True, passed)
    with torch.enable_grad():
        return _differentiate(call, variables, cotangent, False, passed)


def is_in_plain_mode() -> bool:
    """Whether the caller runs in no `torch.func` transform, no level of forward mode and no inference mode."""
    return peek_interpreter_stack() is None and fwd._current_level < 0 and not _is_inference()


def _differentiate(
    call: Callable[..., Any], variables: Variables, cotangent: Tree, follow: bool, passed: Callable[..., Any] | None
) -> Derivative:
    leaves = variables.tensors() if variables.has_numbers else variables.leaves
    start = 0.0 if passed is None else time.perf_counter()
    linked = fwd._current_level >= 0
    if follow and not linked:
        linked = True in map(_requires_grad, leaves) or (cotangent is not None and requires_grad(cotangent))
    inputs, outputs = _run(call, variables, leaves, linked, differentiable_attention() if linked else None)
    attached = linked or (follow and hangs_on_others(outputs, inputs))
    if attached and has_fused_kernel(outputs):
        inputs, outputs = _run(call, variables, leaves, linked, _plain_operations())
    middle = 0.0 if passed is None else time.perf_counter()
    value = outputs if type(outputs) is Tensor else outputs[0] if isinstance(outputs, tuple) and outputs else outputs
    if cotangent is None:
        grads, cotangents = _pull_scalar(value, inputs, attached), None
    else:
        roots, cotangents = cotangent_leaves(value, cotangent, ASKED)
        grads = _pull(roots, inputs, cotangents, attached)
    if grads is None or (grads[0] is None and all(g is None for g in grads)):
        refuse_constant(call, inputs, ASKED)
        grads = [None] * len(inputs)
    results = owned(grads, inputs, cotangents)
    if passed is not None:
        passed(middle - start, time.perf_counter() - middle)
    if not attached:
        outputs = outputs.detach() if type(outputs) is Tensor else _detached(outputs)
    return Derivative(results, outputs, variables, attached)


def _run(
    call: Callable[..., Any], variables: Variables, leaves: Sequence[Tensor], linked: bool, way: _Way | None
) -> tuple[list[Tensor], Any]:
    try:
        inputs = [_linked(leaf) for leaf in leaves] if linked else [x.requires_grad_() for x in map(_detach, leaves)]
    except RuntimeError:  # integers, or tensors made in inference mode, which can be read, but not recorded
        refuse_leaves(variables, ASKED)
        inputs = [leaf.clone().requires_grad_() if leaf.is_inference() else _linked(leaf) for leaf in leaves]
    versions = list(map(_version, inputs))
    try:
        if way is None:
            outputs = call(inputs)
        else:
            with way:
                outputs = call(inputs)
    except RuntimeError as error:
        refuse_devices(variables, error, ASKED)
        refuse_known(error, ASKED)
        raise
    if list(map(_version, inputs)) != versions:
        refuse_changed(variables, inputs, versions, ASKED)
    return inputs, outputs


def _linked(leaf: Tensor) -> Tensor:
    """A leaf of its own that still hangs on what the tensor hangs on, in reverse mode or in forward mode."""
    if leaf.requires_grad:
        return leaf.view_as(leaf)
    if fwd._current_level >= 0:
        with torch.no_grad():
            return leaf.view_as(leaf).requires_grad_()
    return leaf.detach().requires_grad_()


def _plain_operations() -> _Way:
    stack = ExitStack()
    for context in (differentiable_attention(), plain_recurrences(), PlainWeightNorm(), PlainBags()):
        stack.enter_context(context)
    return stack


def _pull_scalar(value: Any, inputs: list[Tensor], attached: bool) -> Sequence[Tensor | None] | None:
    """The gradients of a real number, as `_pull`.

    Where nothing watches, the checks that torch.autograd.grad makes in Python, which cost as much as ten small operations, are
    left out: they have been made, or cannot fail.
    """
    if (
        type(value) is not Tensor
        or value.numel() != 1
        or not (value.requires_grad and value.dtype.is_floating_point)
        or _dispatch_modes()
        or _is_autocasting()
        or has_torch_function(tensors := (value, *inputs))
    ):
        return _pull(require_scalar(value, ASKED), inputs, None, attached)
    # beside, torch.autograd hands the context of this thread to those of devices, for what is compiled there; and it logs
    is_plain = (_COMPILER not in sys.modules or all(map(_is_cpu, tensors))) and not _log.isEnabledFor(logging.DEBUG)
    run = _engine.run_backward if is_plain else _engine_run_backward
    try:
        return run((value,), (_ones_like(value),), attached, attached, tensors[1:], True, accumulate_grad=False)
    except RuntimeError as error:
        refuse_known(error, ASKED)
        raise


def _pull(
    roots: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor] | None, attached: bool
) -> Sequence[Tensor | None] | None:
    """The gradients, None for an input that is not used; None where no root hangs on anything."""
    if cotangents is not None:
        used = [(y, u) for y, u in zip(roots, cotangents, strict=True) if y.requires_grad]
        roots, cotangents = [y for y, _ in used], [u for _, u in used]
    if not roots or not roots[0].requires_grad:
        return None
    try:
        with _around_backward():
            return torch.autograd.grad(roots, inputs, cotangents, create_graph=attached, allow_unused=True)
    except RuntimeError as error:
        refuse_known(error, ASKED)
        raise


def _around_backward() -> AbstractContextManager[Any]:
    """Autocasting is for forward passes; and what looks for a cut in the graph must not take a gradient for one."""
    if _is_autocasting():
        return torch._C._DisableAutocast()
    return torch._C.DisableTorchFunction() if torch._C._len_torch_function_stack() and is_diagnosed() else _AS_IT_IS


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach() if value.requires_grad else value
    if type(value) is tuple:
        return tuple([_detached(part) for part in value])
    if value is None or not any(isinstance(y, Tensor) and y.requires_grad for y in tree.leaves(value)):
        return value
    return tree.map_tree(lambda y: y.detach() if isinstance(y, Tensor) else y, value)
