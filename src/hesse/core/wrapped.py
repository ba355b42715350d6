"""Modules that others wrap: the module inside, whose forward pass talks to nobody."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hesse.core.errors import UnsupportedError

_COPIES = (DistributedDataParallel, nn.DataParallel)


def unwrapped(module: nn.Module, asked: str) -> nn.Module:
    """The module inside `DistributedDataParallel`, `DataParallel` and `torch.compile`, or the module itself.

    Its parameters are the wrapper's own tensors, under the names they have without it. Nothing of the wrapper runs: no
    collective, no hook, no change to what it keeps.

    Args:
        module: any module.
        asked: what for, in error messages.

    Raises:
        UnsupportedError: a wrapper that computes something else than the module inside (mixed precision, hooks of its own), a
            wrapper that communicates somewhere inside the model, a model whose parameters are sharded over ranks.
    """
    module = inside(module, asked)
    for name, leaf in sharded_leaves(module):
        raise UnsupportedError(
            asked,
            f"'{name}' is sharded over ranks: {leaf.placements}",
            "call hesse.distributed.gathered(model) on all ranks and pass what it returns",
        )
    return module


def inside(module: nn.Module, asked: str) -> nn.Module:
    """As `unwrapped`, but parameters may be sharded over ranks."""
    while (inner := _inner(module)) is not None:
        own = module._forward_pre_hooks or module._forward_hooks
        reduced = getattr(module, "mixed_precision", None)
        if own or reduced is not None:
            found = "forward hooks" if own else f"mixed_precision={reduced}"
            raise UnsupportedError(
                asked,
                f"a {type(module).__name__} with {found}, which computes something else than the module inside",
                "pass the module inside, and torch.autocast or its own hooks where they are wanted",
            )
        module = inner
    for name, part in module.named_modules():
        if isinstance(part, _COPIES):
            raise UnsupportedError(
                asked, f"'{name}' is a {type(part).__name__}, whose forward pass communicates", "wrap the whole model instead"
            )
        if _is_flattened(part):
            raise UnsupportedError(
                asked,
                f"{place(name)} is a FullyShardedDataParallel, which flattens parameters and keeps a part on each rank",
                "shard by torch.distributed.fsdp.fully_shard and pass hesse.distributed.gathered(model)",
            )
    return module


def sharded_leaves(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """``(name, tensor)`` of every parameter and buffer that is a `torch.distributed.tensor.DTensor`, in the module's order.

    Those that `fully_shard` has gathered for the moment are among them, as they are while they are sharded.
    """
    if "torch.distributed.tensor" not in sys.modules:
        return
    managed = dict(_managed(module))
    for name, leaf in [*module.named_parameters(), *module.named_buffers()]:
        if is_sharded(leaf):
            yield name, leaf
        elif name in managed:
            yield name, managed[name]


def is_sharded(leaf: Any) -> bool:
    """Whether a leaf is a `torch.distributed.tensor.DTensor`, which nobody has where that was not imported."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(leaf, kind)


def _managed(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The sharded parameters of `fully_shard`, whether or not they are gathered now (the root's are after a forward pass)."""
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if fsdp is None:
        return
    paths = {id(part): name for name, part in module.named_modules()}
    for part in module.modules():
        if not isinstance(part, fsdp):
            continue
        of_part: Any = part
        for group in of_part._get_fsdp_state()._fsdp_param_groups:
            for entry in group.fsdp_params:
                path = paths.get(id(entry._module_info.module), "")
                yield f"{path}.{entry._module_info.param_name}".lstrip("."), entry.sharded_param


def _inner(module: nn.Module) -> nn.Module | None:
    if isinstance(module, _COPIES):
        return module.module
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    kind = getattr(dynamo, "OptimizedModule", None)
    if kind is not None and isinstance(module, kind):
        inner: Any = module._orig_mod
        return inner
    return None


def _is_flattened(part: nn.Module) -> bool:
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    return kind is not None and isinstance(part, kind)


def place(name: str) -> str:
    """A module's path, as an error names it."""
    return f"'{name}'" if name else "the model"
