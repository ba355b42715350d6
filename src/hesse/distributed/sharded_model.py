"""Models whose parameters are sharded over ranks (`fully_shard`, `DTensor`): as functions of their full parameters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from hesse.autodiff.functional import FunctionalModule, buffers_preserved
from hesse.core import tree
from hesse.core.errors import HesseError, MemoryBudgetError, StructureError, UnsupportedError
from hesse.core.memory import Budget, current_budget, format_bytes
from hesse.core.wrapped import inside, place, sharded_leaves
from hesse.distributed.sharded_agree import TIMEOUT, agree, full
from hesse.distributed.sharded_hooks import communication_off, hooks, mixed_precision, resting

_ASKED = "gathered(model) runs a sharded model with full parameters."
_HARMLESS = ("torch.distributed.fsdp", "torch.distributed._composable")  # what they do beside communication is checked by name
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


class GatheredModule(FunctionalModule):
    """``f(params, *inputs, **inputs)`` of a sharded module, all parameters full; made by `gathered`.

    A run takes off the hooks by which PyTorch gathers, shards and redistributes, and puts them back.
    """

    def __init__(self, module: nn.Module, frozen: dict[str, Tensor]) -> None:
        super().__init__(module, _locks.setdefault(module, threading.RLock()))
        self.frozen = frozen

    def __call__(self, params: dict[str, Tensor], *inputs: Any, **named: Any) -> Any:
        for name, leaf in tree.named_leaves((inputs, named)):
            if isinstance(leaf, DTensor):
                raise StructureError(_ASKED, f"a DTensor as input '{name}'", "pass this rank's samples: .to_local()")
        with self._lock, communication_off(self.module):
            return super().__call__({**self.frozen, **params}, *inputs, **named)

    def __reduce__(self) -> tuple[Any, ...]:
        found, remedy = "an attempt to pickle or copy it", "call gathered(model) where it is needed"
        raise UnsupportedError("A gathered model lives in its process.", found, remedy)

    def __repr__(self) -> str:
        return f"gathered({type(self.module).__name__})"


def gathered(
    model: nn.Module, *, memory: Budget | None = None, example: Any = None, timeout: float = TIMEOUT
) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    """A model sharded over ranks as a pure function and its full parameters, which every function of hesse takes as a model.

    To be called on all ranks of the model's meshes together. The parameters are those of this moment: after a step of the
    optimizer, call it again. What is made of the pair is local: of the data that this rank passes. Nothing is sent
    until results are those of all ranks' data (`spread`).

    Args:
        model: a module whose parameters are sharded by `torch.distributed.fsdp.fully_shard` or are `DTensor` s; also inside
            `torch.compile`. Placements: any but partial sums.
        memory: bytes that the gathered parameters may take, a fraction of free memory, or a text.
        example: inputs of a batch (a tensor, a tuple, a dict); the model runs on it as it is, and with full parameters, and the
            outputs have to agree. Needed where hooks of tensor parallelism stand in the model, since what they do beside
            redistribution cannot be seen.
        timeout: seconds to wait for the other ranks, before the parameters are gathered and at each of them.

    Returns:
        ``(f, params)`` as of `hesse.functional`: full parameters by name on every rank, detached.

    Raises:
        MemoryBudgetError: some rank has not the memory for the full parameters; raised on all ranks.
        UnsupportedError: mixed precision or offloading by `fully_shard`, sharded buffers, partial sums, hooks that need an
            example, an example on which the outputs differ, parameters changed since a run whose full values the model holds.
        DistributedError: a rank failed, is gone or asks something else.

    Cost: all parameters are gathered once: (p - 1) / p of their bytes received by each of p ranks, and the memory of the
    unsharded model while the pair or an operator made of it lives.
    """
    if not isinstance(model, nn.Module):
        raise StructureError(_ASKED, f"a {type(model).__name__}", "pass the nn.Module")
    module = inside(model, _ASKED)
    sharded = dict(sharded_leaves(module))
    registered = dict(module.named_parameters())
    agree(sharded, lambda: _verdict(module, sharded, registered, memory, example), "gathered(model)", timeout)
    values = {name: _own_value(leaf, timeout) if name in sharded else leaf.detach() for name, leaf in registered.items()}
    f = GatheredModule(module, {name: leaf for name, leaf in values.items() if not registered[name].requires_grad})
    params = {name: leaf for name, leaf in values.items() if registered[name].requires_grad}
    if example is not None:
        agree(sharded, lambda: _difference(model, module, (f, params), example, timeout), "gathered(model, example=)", timeout)
    return f, params


def _own_value(leaf: Tensor, timeout: float) -> Tensor:
    """The full value in memory of its own: what `fully_shard` holds from a run it frees later."""
    value = full(leaf, "gathered", timeout).detach()
    theirs = leaf.to_local() if isinstance(leaf, DTensor) else leaf
    return value.clone() if value.untyped_storage().data_ptr() == theirs.untyped_storage().data_ptr() else value


def _verdict(
    module: nn.Module, sharded: dict[str, Any], registered: dict[str, Any], memory: Budget | None, example: Any
) -> HesseError | None:
    for name, leaf in sharded.items():
        found = ""
        if name not in registered:
            found = f"the buffer '{name}' is sharded"
        elif any(placement.is_partial() for placement in leaf.placements):
            found = f"'{name}' is a partial sum: {leaf.placements}"
        elif leaf.to_local().device.type != leaf.device_mesh.device_type:
            found = f"'{name}' is offloaded to the {leaf.to_local().device.type}"
        if found:
            return UnsupportedError(_ASKED, found, "pass a plain copy of the model with the full state dict loaded")
        if _is_stale(registered[name], leaf):
            found = f"'{name}' was changed while the model held its full value from an earlier run"
            return UnsupportedError(_ASKED, found, "call model.reshard() first")
    cast = mixed_precision(module)
    if cast:
        return UnsupportedError(_ASKED, cast, "run it under torch.autocast instead, or pass a plain copy of the model")
    unknown = [name for name, hook in hooks(module) if not hook.startswith(_HARMLESS)]
    if unknown and example is None:
        where = place(unknown[0])
        remedy = "pass example=inputs: the outputs with and without them are compared"
        return UnsupportedError(_ASKED, f"hooks of tensor parallelism at {where}", remedy)
    local = [leaf for name, leaf in registered.items() if isinstance(leaf, DTensor)]
    wanted = sum(leaf.numel() * leaf.element_size() for leaf in local)
    allowed = current_budget(memory, local[0].to_local().device if local else "cpu")
    if wanted <= allowed:
        return None
    return MemoryBudgetError(
        "The memory budget is too small for the full parameters of a sharded model.",
        f"a budget of {format_bytes(allowed)}, where at least {format_bytes(wanted)} is needed",
        f"pass memory={wanted} or more",
        wanted,
    )


def _is_stale(registered: Tensor, leaf: Any) -> bool:
    """Whether a full value that `fully_shard` keeps from a run is another one than this rank's shard."""
    if isinstance(registered, DTensor):
        return False
    here = distribute_tensor(registered.detach(), leaf.device_mesh, leaf.placements, src_data_rank=None)
    return not torch.equal(here.to_local(), leaf.detach().to_local())


def _difference(
    model: nn.Module, module: nn.Module, gathered_model: tuple[Callable[..., Any], Any], example: Any, timeout: float
) -> HesseError | None:
    """Run the model as its user would and with full parameters, and compare."""
    f, params = gathered_model
    inputs, named = ((), example) if isinstance(example, dict) else (example if isinstance(example, tuple) else (example,), {})
    were_cut = resting(module)
    with torch.no_grad(), torch.random.fork_rng(), buffers_preserved(module):
        theirs = tree.leaves(model(*inputs, **named))
    for part in were_cut:
        part.reshard()
    with torch.no_grad(), torch.random.fork_rng():
        ours = tree.leaves(f(params, *inputs, **named))
    for a, b in zip(theirs, ours, strict=True):
        if isinstance(a, Tensor):
            a = full(a, "gathered", timeout)
            scale = b.abs().max().item() if b.numel() else 0.0
            rounding = 1e4 * torch.finfo(b.dtype).eps if b.is_floating_point() else 0.0
            if a.shape != b.shape or not torch.allclose(a, b, rtol=rounding, atol=rounding * scale):
                return UnsupportedError(
                    _ASKED,
                    f"its output on the example is another one without the hooks of torch.distributed ({tuple(a.shape)} and "
                    f"{tuple(b.shape)})",
                    "call model.eval() if it draws random numbers; else pass a plain copy of the model",
                )
    return None
