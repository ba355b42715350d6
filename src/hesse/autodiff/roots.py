"""Roots: what is sent backwards from the output, which selects the meaning of a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.capture import Captured, Forward, capture, capture_one_by_one, forget, plan_of, run_forward
from hesse.autodiff.cuts import diagnose
from hesse.autodiff.layout import Walk
from hesse.autodiff.losses import BatchLoss, batch_loss, loss_by_sample
from hesse.autodiff.model import Model, check_inputs, sample_count, split_batch
from hesse.autodiff.one_sample import check_one_sample
from hesse.autodiff.recording import nodes
from hesse.core import tree
from hesse.core.errors import DetachedError, MixedSamplesError, StructureError, UnsupportedError
from hesse.rules.losses import known_loss

Loss = Callable[[Any, Any], Tensor] | None


@dataclass(frozen=True, eq=False)
class Rows:
    """The forms of every row: one `Captured` for each root.

    Attributes:
        captured: one for a loss; for the output Jacobian one for each element of a sample's output.
        count: number of samples.
        shape: of the rows: ``[n]`` for a loss, the shape of the output otherwise.
        dtype, device: of the output.
        mass: the loss's normalizer.
        additive: whether the losses of two batches add up.
    """

    captured: list[Captured]
    count: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    mass: float
    additive: bool


def capture_rows(model: Model, loss: Loss, batch: Any, asked: str) -> Rows:
    """Run the model on a batch and capture the forms of every row of the parameter Jacobian.

    Cost: one forward pass and one backward pass without weight gradients (for the output Jacobian one an output element).
    The first call for a model and a shape runs the model on a few samples more, to plan and to check.
    """
    inputs, targets = split_batch(batch, asked, target_needed=loss is not None)
    count = sample_count(inputs, targets if loss is not None else None, asked)
    check_inputs(model, inputs, asked)
    for name, leaf in tree.named_leaves(model.params):
        if leaf.is_complex():
            raise UnsupportedError(
                asked, f"complex parameter '{name}'", "hold it as real numbers: torch.view_as_complex(p) inside the model"
            )
    forward = run_forward(model, inputs, count, asked)
    output = forward.output
    if not output.requires_grad:
        _refuse_detached(forward, asked)
    if output.ndim == 0 or output.numel() % count:
        raise StructureError(
            asked, f"an output of shape {tuple(output.shape)} for {count} samples", "return one output a sample"
        )
    walk = Walk.of(output)
    plan, is_new = plan_of(forward, walk, asked)
    taken = None if loss is None else _take_apart(loss, forward, targets, asked)
    cotangents = [taken[1]] if taken is not None else _unit_cotangents(output, count)
    if plan.reason:
        captured = [capture_one_by_one(forward, u, plan.reason, asked) for u in cotangents]
    else:
        captured = [capture(forward, walk, plan, u) for u in cotangents]
    if is_new:
        if taken is not None and loss is not None:
            _check_loss(loss, forward, targets, taken[0], asked)
        try:
            wrong = check_one_sample(forward, captured[0], cotangents[0], asked)
        except BaseException:
            forget(forward)
            raise
        if wrong:
            forget(forward)
            captured = [capture_one_by_one(forward, u, wrong, asked) for u in cotangents]
    shape = torch.Size((count,)) if loss is not None else output.shape
    mass, additive = (taken[0].mass, taken[0].additive) if taken is not None else (1.0, True)
    return Rows(captured, count, shape, output.dtype, output.device, mass, additive)


def _take_apart(loss: Callable[[Any, Any], Tensor], forward: Forward, targets: Any, asked: str) -> tuple[BatchLoss, Tensor]:
    """The contributions of the samples, and the cotangent of the output that belongs to their sum."""
    with torch.enable_grad():
        output = forward.output.detach().requires_grad_()
        if known_loss(loss) is None:
            _require_connected(lambda: batch_loss(loss, output, targets, forward.model, asked), output, asked)
        taken = loss_by_sample(loss, output, targets, forward.count, asked)
        if not taken.contributions.requires_grad:
            return taken, torch.zeros_like(output)
        (cotangent,) = torch.autograd.grad(taken.contributions.sum(), output, allow_unused=True, materialize_grads=True)
    return taken, cotangent


def _require_connected(run: Callable[[], Tensor], output: Tensor, asked: str) -> None:
    value = run()
    if value.grad_fn is not None and any(getattr(node, "variable", None) is output for node in nodes([value.grad_fn])):
        return
    diagnosis = diagnose(run, [output])
    if not diagnosis.is_zero:
        raise DetachedError(asked, f"the loss does not depend on the output through the graph: {diagnosis}", _MEND)


_MEND = "keep the computation in torch: no .item(), .data, .detach(), numpy() or new Variable before the loss"


def _refuse_detached(forward: Forward, asked: str) -> None:
    leaves = list(forward.leaves.values())
    _, structure = tree.flatten(forward.model.params)
    diagnosis = diagnose(lambda: forward.model.call(structure.unflatten(leaves), forward.inputs), leaves)
    raise DetachedError(asked, f"the output does not depend on the parameters through the graph: {diagnosis}", _MEND)


def _unit_cotangents(output: Tensor, count: int) -> list[Tensor]:
    if output.is_complex():
        raise UnsupportedError(
            "The output Jacobian needs a real output.", f"{output.dtype}", "output=lambda o: torch.view_as_real(o)"
        )
    if output.shape[0] != count:
        raise UnsupportedError(
            "The output Jacobian needs an output whose first axis is the batch.",
            f"shape {tuple(output.shape)} for {count} samples",
            "pick or reshape it: output=lambda o: o.reshape(n, -1)",
        )
    width = output.numel() // count
    units = torch.eye(width, dtype=output.dtype, device=output.device)
    return [unit.expand(count, width).reshape(output.shape) for unit in units]


def _check_loss(loss: Callable[[Any, Any], Tensor], forward: Forward, targets: Any, taken: BatchLoss, asked: str) -> None:
    """The user's batch loss has to be what its samples add up to (once for every new graph)."""
    if getattr(loss, "reduction", None) == "none" or taken.mass == 0:
        return
    with torch.no_grad():
        value = loss(forward.output, targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        return
    whole = float(value)
    terms = taken.contributions.detach().double()
    total, size = float(terms.sum()) / taken.mass, float(terms.abs().sum()) / taken.mass
    if abs(whole - total) > max(1e-3, 8 * torch.finfo(value.dtype).eps) * size + 1e-6:
        raise MixedSamplesError(
            asked, f"a batch loss of {whole:.6g} where its samples add up to {total:.6g}", "report this loss"
        )
