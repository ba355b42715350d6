"""Everything about a module that a library may leave changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def fingerprint(module: nn.Module) -> dict[str, Any]:
    """Values, identities and versions of parameters and buffers, gradients, modes, hooks, attributes, the random state."""
    found: dict[str, Any] = {"random state": torch.get_rng_state().tolist(), "grad mode": torch.is_grad_enabled()}
    found["default dtype"] = torch.get_default_dtype()
    for name, tensor in [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]:
        found[f"{name} value"] = repr(tensor.detach().tolist())
        found[f"{name} itself"] = (id(tensor), tensor._version, tensor.requires_grad, tensor.dtype, tensor.data_ptr())
        found[f"{name} grad"] = None if tensor.grad is None else (id(tensor.grad), repr(tensor.grad.tolist()))
        hooks = getattr(tensor, "_backward_hooks", None), getattr(tensor, "_post_accumulate_grad_hooks", None)
        found[f"{name} hooks"] = tuple(len(h) if h else 0 for h in hooks)
    for name, part in module.named_modules():
        found[f"'{name}' mode"] = part.training
        hooks = {key: len(value) for key, value in vars(part).items() if "hooks" in key}
        found[f"'{name}' hooks"] = hooks
        found[f"'{name}' attributes"] = sorted(vars(part))
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The keys whose values differ."""
    return [key for key in before.keys() | after.keys() if before.get(key, "absent") != after.get(key, "absent")]
