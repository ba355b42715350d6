"""When an op may give way to a form of its own, and when such a form is itself differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch.autograd import forward_ad

SMALL = 2**12  # elements below which the calls of a form in Python cost more than it saves
_DTYPES = (torch.float32, torch.float64)


def may_swap(*tensors: Any) -> bool:
    """Whether an op on these tensors is differentiated by plain reverse mode, with nothing in between that would see a swap.

    Not inside `torch.func` transforms, forward mode or autocast, not under hooks on saved tensors (checkpointing runs the op
    again and compares), not for subclasses of tensors.
    """
    return (
        torch.is_grad_enabled()
        and all(type(t) in (Tensor, torch.nn.Parameter) and t.dtype in _DTYPES and t.layout == torch.strided for t in tensors)
        and any(t.requires_grad for t in tensors)
        and all(t.numel() > 0 and t.device == tensors[0].device and t.dtype == tensors[0].dtype for t in tensors)
        and tensors[0].device.type in ("cpu", "cuda")
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch.is_autocast_enabled(tensors[0].device.type)
        and _top_saved_tensors_default_hooks(True) is None
    )


def differentiates_again() -> bool:
    """Whether a backward pass is recorded by plain autograd, so that a `Function` of its own may stand in its graph."""
    return torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()
