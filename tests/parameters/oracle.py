"""Per-sample derivatives by the plainest means: every sample alone, plain autograd, float64. Nothing here imports hesse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[Any, Any], Tensor]


def sample(value: Any, i: int) -> Any:
    """Sample i of a tensor, tuple, list or dict of tensors, as a batch of one."""
    if isinstance(value, Tensor):
        return value[i : i + 1]
    if isinstance(value, dict):
        return {name: sample(part, i) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(sample(part, i) for part in value)
    return value


def run(model: Callable[..., Any], inputs: Any) -> Any:
    """A model on a tensor, a tuple of positional or a dict of keyword inputs."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that require grad, in `named_parameters` order."""
    return [p for p in module.parameters() if p.requires_grad]


def gradient(value: Tensor, params: Sequence[Tensor]) -> Tensor:
    """The gradient of a scalar by all parameters, flat; zero where there is no path."""
    if not value.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in params])
    grads = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
    return torch.cat([(part.to_dense() if part.is_sparse else part).flatten() for part in parts])


def loss_rows(
    model: nn.Module, loss: Loss, inputs: Any, targets: Any, output: Callable[[Any], Tensor] = lambda out: out
) -> Tensor:
    """``[N, D]``: the gradient of ``loss(output of sample alone, its target)``, a loop over samples."""
    params = trainable(model)
    first = targets if isinstance(targets, Tensor) else next(iter(_leaves(targets)))
    rows = []
    for i in range(len(first)):
        out = output(run(model, sample(inputs, i)))
        rows.append(gradient(loss(out, sample(targets, i)).sum(), params))
    return torch.stack(rows).detach()


def output_rows(model: nn.Module, inputs: Any, count: int) -> Tensor:
    """``[N, C, D]``: the gradient of every output element of every sample alone (flat over the output's axes)."""
    params = trainable(model)
    rows = []
    for i in range(count):
        out = run(model, sample(inputs, i)).flatten()
        rows.append(torch.stack([gradient(element, params) for element in out]))
    return torch.stack(rows).detach()


def _leaves(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [leaf for part in parts for leaf in _leaves(part)]


def difference(found: Tensor, expected: Tensor) -> float:
    """How far two tensors are apart, relative to the expected one's 2-norm (absolute where that is tiny)."""
    assert found.shape == expected.shape, f"shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    assert found.dtype == expected.dtype, f"{found.dtype} instead of {expected.dtype}"
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


def randomize(module: nn.Module) -> nn.Module:
    """Random values everywhere: for parameters that start as ones or zeros, and for running statistics."""
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.dtype.is_floating_point:
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "running_var" in name else 0.5 * torch.randn_like(tensor))
    return module
