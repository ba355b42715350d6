"""The loss of a batch by sample: by a rule for known losses, sample by sample for any other callable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.model import Model, select_rows
from hesse.autodiff.recording import nodes
from hesse.core import tree
from hesse.core.errors import DataError, HesseError, MixedSamplesError, NonScalarError, StructureError, UnsupportedError
from hesse.rules.losses import Mass, SampleLoss, known_loss


@dataclass(frozen=True, eq=False)
class BatchLoss:
    """The contributions of the samples of one batch.

    Attributes:
        contributions: ``[n]``, not reduced.
        mass: what the batch loss divides their sum by.
        additive: whether the losses of two batches add up instead of averaging by mass.
    """

    contributions: Tensor
    mass: Mass
    additive: bool


def loss_by_sample(loss: Callable[[Any, Any], Tensor], output: Any, target: Any, count: int, asked: str) -> BatchLoss:
    """Take the loss of a batch apart.

    A known loss (one with a rule) gives each sample's unreduced contribution, positions of one sample added up. For any other
    callable, sample i contributes ``loss(output[i:i+1], target[i:i+1])``, and the batch loss has to be their sum or mean.

    Raises:
        MixedSamplesError: the batch loss is neither.
        NonScalarError: the loss is no scalar.
        DataError: output or target have another number of rows.
    """
    rule = known_loss(loss)
    if rule is not None and isinstance(output, Tensor) and isinstance(target, Tensor):
        try:
            terms = rule.contributions(output, target)
        except (IndexError, RuntimeError, ValueError) as error:
            _explain(error, rule, output, target, asked)
            raise
        if terms.ndim == 0 or terms.shape[0] % count:
            raise DataError(
                asked,
                f"a loss over {tuple(terms.shape)} elements for {count} samples",
                "give output and target the batch as first axis",
            )
        terms = terms if terms.shape == (count,) else terms.reshape(count, -1).sum(1)
        return BatchLoss(terms, rule.mass(output.detach(), target), rule.additive)
    return _sample_by_sample(loss, output, target, count, asked)


def _sample_by_sample(loss: Callable[[Any, Any], Tensor], output: Any, target: Any, count: int, asked: str) -> BatchLoss:
    if not isinstance(output, Tensor) or output.ndim == 0 or output.shape[0] != count:
        found = (
            f"output of shape {tuple(output.shape)}"
            if isinstance(output, Tensor)
            else f"an output of type {type(output).__name__}"
        )
        raise StructureError(
            asked, f"{found} for {count} samples", "return a tensor whose first axis is the batch (output=lambda o: o.logits)"
        )
    terms = _terms(loss, output, target, asked)
    with torch.enable_grad():
        for scale in (1.0, 0.9):  # elsewhere too where both fit (terms or slopes that cancel), in the domain of any loss
            is_sum, is_mean, whole, total = _reductions(loss, output.detach() * scale, target, count, asked)
            if is_sum != is_mean:
                break
    if not (is_sum or is_mean):
        found = f"a loss of {whole.item():.6g} for the batch where its samples add up to {total.item():.6g}"
        raise MixedSamplesError(
            asked,
            f"{found}, neither the sum of its samples nor their mean",
            "use a loss that adds or averages over samples (hesse knows the normalizers of PyTorch's own losses)",
        )
    return BatchLoss(terms, 1.0, additive=True) if not is_mean else BatchLoss(terms, float(count), additive=False)


def _terms(loss: Callable[[Any, Any], Tensor], output: Tensor, target: Any, asked: str) -> Tensor:
    return torch.stack([require_scalar(loss(output[i : i + 1], _sample(target, i)), asked) for i in range(len(output))])


def _reductions(
    loss: Callable[[Any, Any], Tensor], output: Tensor, target: Any, count: int, asked: str
) -> tuple[bool, bool, Tensor, Tensor]:
    """Whether value and slope of the batch loss are those of the samples' sum, of their mean; and the two values.

    Python reads nothing but the two answers, so that a record of them holds for other numbers.
    """
    output.requires_grad_()
    twice = torch.arange(count).repeat(2 if count == 1 else 1)  # one sample alone cannot tell a sum from a mean
    terms = select_rows(_terms(loss, output, target, asked), twice)
    whole = require_scalar(loss(select_rows(output, twice), select_rows(target, twice)), asked)
    total = terms.sum()
    slopes = [_slope(value, output) for value in (whole, total)]
    eps = 64 * torch.finfo(whole.dtype).eps * len(twice) ** 0.5
    slack = 2 * eps * terms.detach().abs().sum() + 1e-30, 2 * eps * slopes[1].norm() + 1e-30

    def fits(divisor: int) -> bool:
        off = (whole.detach() * divisor - total.detach()).abs(), (slopes[0] * divisor - slopes[1]).norm()
        return bool((off[0] <= slack[0]) & (off[1] <= slack[1]))

    return fits(1), fits(len(twice)), whole, total


def _slope(value: Tensor, output: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(output)
    return torch.autograd.grad(value, output, retain_graph=True, allow_unused=True, materialize_grads=True)[0]


def _sample(target: Any, i: int) -> Any:
    return tree.map_tree(lambda leaf: leaf[i : i + 1] if isinstance(leaf, Tensor) else leaf, target)


def require_scalar(value: Any, asked: str) -> Tensor:
    """The value of a loss, 0-d.

    Raises:
        StructureError: it is no tensor. NonScalarError: it has several elements.
    """
    if not isinstance(value, Tensor):
        raise StructureError(asked, f"the loss returned {type(value).__name__}", "return a 0-d tensor, not .item()")
    if value.numel() != 1:
        raise NonScalarError(asked, f"the loss returned shape {tuple(value.shape)}", "reduce it: loss(...).sum() or .mean()")
    return value.reshape(())


def called(loss: Callable[[Any, Any], Tensor], output: Any, target: Any, asked: str) -> Any:
    """``loss(output, target)``.

    Raises:
        DataError: a known loss fails for a reason that its rule knows, such as a label that is no class.
    """
    try:
        return loss(output, target)
    except (IndexError, RuntimeError, ValueError) as error:
        _explain(error, known_loss(loss), output, target, asked)
        raise


def _explain(error: Exception, rule: SampleLoss | None, output: Any, target: Any, asked: str) -> None:
    if rule is None or isinstance(error, HesseError) or not (isinstance(output, Tensor) and isinstance(target, Tensor)):
        return
    trouble = rule.trouble(output, target)
    if trouble is not None:
        raise DataError(asked, *trouble) from error


def batch_loss(loss: Callable[[Any, Any], Tensor], output: Any, target: Any, model: Model | None, asked: str) -> Tensor:
    """The loss of a batch as the user's callable gives it.

    Raises:
        NonScalarError: it is no scalar. UnsupportedError: it reads the model's parameters past the model's output.
    """
    value = require_scalar(called(loss, output, target, asked), asked)
    own = {} if model is None else {id(parameter): name for name, parameter in model.own.items()}
    for node in nodes([value.grad_fn]):
        name = own.get(id(getattr(node, "variable", None)))
        if name is not None:
            raise UnsupportedError(
                asked,
                f"the loss reads the parameter '{name}' itself, past the model's output",
                "leave such penalties out of the loss, and add their derivatives to the result",
            )
    return value


def batch_mass(loss: Callable[[Any, Any], Tensor], output: Any, target: Any, count: int, asked: str) -> tuple[float, bool]:
    """The normalizer of a batch's loss, and whether losses of batches add up."""
    rule: SampleLoss | None = known_loss(loss)
    with torch.no_grad():
        if rule is not None and isinstance(output, Tensor) and isinstance(target, Tensor):
            return float(rule.mass(output, target)), rule.additive
        result = _sample_by_sample(loss, output, target, count, asked)
    return float(result.mass), result.additive
