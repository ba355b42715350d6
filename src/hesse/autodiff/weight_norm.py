"""PyTorch's fused weight normalization has a wrong second derivative and no forward mode; its plain form has both.

The backward of ``aten::_weight_norm_interface`` takes the saved norms for constants (`torch.autograd.gradgradcheck` fails,
torch 2.13). Reference: Salimans, Kingma 2016.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

FUSED_WEIGHT_NORM = {"WeightNormInterfaceBackward0"}
"""The node of the fused op."""


class PlainWeightNorm(TorchFunctionMode):
    """Within this mode, which belongs to the thread, ``w = v g / |v|`` is computed by ops that can be differentiated again."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch._weight_norm:
            return func(*args, **(kwargs or {}))
        return _plain(*args, **(kwargs or {}))


def with_plain_weight_norm(f: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its weight normalization computed by plain ops."""

    def plain(*args: Any) -> Any:
        with PlainWeightNorm():
            return f(*args)

    return plain


def _plain(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def has_weight_norm(module: nn.Module | None) -> bool:
    """Whether a module normalizes weights by PyTorch's fused op (as a parametrization, or by hooks)."""
    if module is None:
        return False
    return any(
        isinstance(part, _WeightNorm) or any(isinstance(hook, WeightNorm) for hook in part._forward_pre_hooks.values())
        for part in module.modules()
    )
