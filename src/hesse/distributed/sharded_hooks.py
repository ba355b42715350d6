"""What `fully_shard` and tensor parallelism have placed in a model: hooks, patched methods, policies."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from hesse.core.wrapped import place


def mixed_precision(module: nn.Module) -> str:
    """What the policies of `fully_shard` cast, or nothing."""
    for name, part in module.named_modules():
        state = getattr(part, "_get_fsdp_state", lambda: None)()
        policy = getattr(state, "_mp_policy", None)
        if policy is None:
            continue
        dtypes = {leaf.dtype for leaf in part.parameters()}
        for asked in (policy.param_dtype, policy.output_dtype):
            if asked is not None and dtypes != {asked}:
                return f"the mixed precision of fully_shard at {place(name)}: {policy}"
    return ""


def resting(module: nn.Module) -> list[Any]:
    """The modules of `fully_shard` that a run may leave gathered, and that are not so now."""
    found = []
    for part in module.modules():
        state: Any = getattr(part, "_get_fsdp_state", lambda: None)()
        if state is not None and not any(group.is_unsharded for group in state._fsdp_param_groups):
            found.append(part)
    return found


def _origin(hook: Any) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return getattr(hook, "__module__", None) or ""


def hooks(module: nn.Module) -> Iterator[tuple[str, str]]:
    """``(path, where it was defined)`` of every forward hook that torch.distributed placed."""
    for name, part in module.named_modules():
        for hook in [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]:
            if _origin(hook).startswith("torch.distributed."):
                yield name, _origin(hook)


@contextmanager
def communication_off(module: nn.Module) -> Iterator[None]:
    """Take off the forward hooks of torch.distributed and the methods that `register_fsdp_forward_method` patched."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for part in module.modules():
            own = part.__dict__
            for kind in ("_forward_pre_hooks", "_forward_hooks"):
                kept = [(key, hook) for key, hook in own[kind].items() if not _origin(hook).startswith("torch.distributed.")]
                if len(kept) < len(own[kind]):
                    before.append((own, kind, own[kind]))
                    own[kind] = OrderedDict(kept)
            for name, value in list(own.items()):
                patched = getattr(value, "__func__", None)
                if patched is not None and patched.__globals__["__name__"].startswith("torch.distributed.fsdp"):
                    before.append((own, name, value))
                    own[name] = patched.__wrapped__
        yield
    finally:
        for own, name, value in reversed(before):
            own[name] = value
