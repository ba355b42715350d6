"""What a loss rule gives: the loss by sample, before its reduction, and what the reduction divides by."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hesse.core.registry import Registry
from hesse.rules.losses.curvature import OutputCurvature

CurvatureOf = Callable[[Tensor, Tensor], OutputCurvature]
Mass = float | Tensor
Trouble = tuple[str, str]
"""What was found, and the remedy."""


@dataclass(frozen=True)
class SampleLoss:
    """A loss taken apart: batch loss = contributions.sum() / mass.

    Attributes:
        contributions: ``(output, target) -> [n, ...]``, not reduced; class weights kept, ignored positions 0.
        mass: ``(output, target)`` to the normalizer; 1 for ``reduction="sum"`` and "none". A 0-d tensor of float64 where it is
            computed from the values of the targets, so that nothing is read before somebody asks for the number.
        additive: whether the losses of two batches add up (reduction "sum" or "none") instead of averaging by mass.
        curvature: ``(output, target)`` to the second derivative of ``contributions.sum()`` by the output, where it is twice
            differentiable; None if the rule does not say.
        information: ``(output, target)`` to the Fisher information of the output: the expected outer product of the gradient
            with itself under the distribution whose negative log-likelihood the loss is, multiplied by the weight of the given
            target, if targets have weights. None if the loss is no negative log-likelihood.
        linear: whether the loss is linear in the output (almost everywhere), so that its Gauss-Newton matrix is zero.
        trouble: ``(output, target)`` to what of them PyTorch's own loss refuses, asked after it has; None: nothing is known.
    """

    contributions: Callable[[Tensor, Tensor], Tensor]
    mass: Callable[[Tensor, Tensor], Mass]
    additive: bool
    curvature: CurvatureOf | None = None
    information: CurvatureOf | None = None
    linear: bool = False
    trouble: Callable[[Tensor, Tensor], Trouble | None] = lambda output, target: None


LossRule = Callable[[dict[str, Any]], SampleLoss | None]

loss_rules: Registry[LossRule] = Registry(
    "loss rule", "register one with @loss_rules.register(LossClass, loss_function), or use any callable with per-sample meaning"
)


def known_loss(loss: Any) -> SampleLoss | None:
    """The rule's answer for a loss module, a loss function or a `functools.partial` of one; None if there is no rule."""
    if isinstance(loss, nn.Module):
        rule = loss_rules.get(type(loss))
        hooked = loss._forward_hooks or loss._forward_pre_hooks
        return None if rule is None or hooked else rule(_options_of_module(loss))
    base, given = loss, {}
    if isinstance(loss, functools.partial):
        if loss.args:
            return None
        base, given = loss.func, loss.keywords
    try:
        rule = loss_rules.get(base)
    except TypeError:
        return None
    if rule is None:
        return None
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(base).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    return rule({**defaults, **given})


def _options_of_module(loss: nn.Module) -> dict[str, Any]:
    attributes = {name: value for name, value in vars(loss).items() if not name.startswith("_") and name != "training"}
    return {**attributes, **dict(loss.named_buffers())}


def is_legacy(options: dict[str, Any]) -> bool:
    """Whether the deprecated options size_average or reduce are in use."""
    return options.get("size_average") is not None or options.get("reduce") is not None


def mass_by_reduction(reduction: str, mean_mass: Callable[[Tensor, Tensor], Mass]) -> Callable[[Tensor, Tensor], Mass]:
    """`mean_mass` for "mean", else 1."""
    return mean_mass if reduction == "mean" else lambda output, target: 1.0
