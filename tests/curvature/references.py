"""Dense curvature matrices by definition: double backward of the batch loss, explicit ``J.T H J``, loops. No hesse here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.parameters import oracle

Loss = Callable[[Any, Any], Tensor]


def hessian(model: nn.Module, loss: Loss, inputs: Any, targets: Any) -> Tensor:
    """The Hessian of the batch loss by all trainable parameters, one backward pass a column."""
    params = oracle.trainable(model)
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused attention has no second derivative
        value = loss(oracle.run(model, inputs), targets)
    grads = torch.autograd.grad(value, params, create_graph=True, allow_unused=True)
    flat = torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(grads, params, strict=True)])
    return torch.stack([oracle.gradient(element, params) for element in flat]).detach()


def output_jacobian(model: nn.Module, inputs: Any) -> tuple[Tensor, Tensor]:
    """``[n * c, D]``, the derivative of every element of the whole batch's output, and the output."""
    params = oracle.trainable(model)
    output = oracle.run(model, inputs)
    J = torch.stack([oracle.gradient(element, params) for element in output.flatten()]).detach()
    return J, output.detach()


def loss_hessian_by_output(loss: Loss, output: Tensor, targets: Any) -> Tensor:
    """The second derivative of the batch loss by the whole batch's output, ``[n * c, n * c]``."""
    return torch.func.hessian(lambda out: loss(out.reshape(output.shape), targets))(output.flatten())


def ggn(model: nn.Module, loss: Loss, inputs: Any, targets: Any) -> Tensor:
    """``J.T H J`` with the whole batch's Jacobian and the batch loss's Hessian by the whole batch's output."""
    J, free = output_jacobian(model, inputs)
    return J.T @ loss_hessian_by_output(loss, free, targets) @ J


def outer_products(model: nn.Module, by_sample: Loss, inputs: Any, targets: Any) -> Tensor:
    """The sum of outer products of per-sample gradients."""
    rows = oracle.loss_rows(model, by_sample, inputs, targets)
    return rows.T @ rows


def information(
    output: Tensor, negative_log_likelihood: Loss, targets: Iterable[tuple[Tensor, Tensor]], weights: Tensor | float = 1.0
) -> Tensor:
    """The Fisher information of an output's elements, each the parameter of a target of its own: a sum over its targets.

    Args:
        output: any shape; one target an element.
        negative_log_likelihood: of each element, not reduced: ``(output, target) -> like output``.
        targets: pairs of a target for every element and its probability under the model.
        weights: of the elements.

    Returns:
        Like the output: the diagonal of the information.
    """
    free = output.detach().requires_grad_()
    total = torch.zeros_like(output)
    for target, probability in targets:
        (gradient,) = torch.autograd.grad(negative_log_likelihood(free, target).sum(), free)
        total = total + probability * gradient**2
    return total * weights


def class_information(output: Tensor, weights: Tensor) -> Tensor:
    """The information of logits ``[n, C]`` by enumeration of labels, with a weight a sample: ``[n * C, n * C]``."""
    n, classes = output.shape
    result = output.new_zeros(n, classes, n, classes)
    for i in range(n):
        for label in range(classes):
            logits = output[i].detach().requires_grad_()
            log_p = logits.exp().sum().log() - logits[label]
            (gradient,) = torch.autograd.grad(log_p, logits)
            result[i, :, i, :] += weights[i] * torch.exp(-log_p.detach()) * torch.outer(gradient, gradient)
    return result.reshape(n * classes, n * classes)
