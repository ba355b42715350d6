"""Roots: what is sent backwards from the output, which selects the meaning of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.alone import capture_one_by_one
from hesse.autodiff.capture import capture, forget, plan_of
from hesse.autodiff.cuts import diagnose
from hesse.autodiff.deliver import Captured
from hesse.autodiff.forward import Forward, run_forward
from hesse.autodiff.layout import Walk
from hesse.autodiff.losses import BatchLoss, batch_loss, loss_by_sample
from hesse.autodiff.model import Model, check_inputs, sample_count, split_batch
from hesse.autodiff.one_sample import check_one_sample, row_of_forms
from hesse.autodiff.plan import Plan
from hesse.autodiff.recording import nodes
from hesse.autodiff.streaming import Take, stream
from hesse.core import tree
from hesse.core.errors import DetachedError, MixedSamplesError, StructureError, UnsupportedError
from hesse.rules.losses import Mass, known_loss

Loss = Callable[[Any, Any], Tensor] | None
Outputs = int | Sequence[int] | Tensor | None


@dataclass(frozen=True, eq=False)
class RowFacts:
    """What is known of the rows besides their forms.

    Attributes:
        of: what they are the derivatives of: "loss", "output", or "root" (cotangents that somebody chose).
        shape: of the rows: ``[N]`` or ``[N, C]`` (any number of axes for outputs).
        dtype, device: of the output.
        mass: the loss's normalizer; a 0-d tensor where it depends on the values of the targets.
        additive: whether the losses of two batches add up.
        attached: whether results are differentiable by the user's parameters.
    """

    of: str
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    mass: Mass
    additive: bool
    attached: bool


@dataclass(frozen=True, eq=False)
class Rows:
    """The forms of every row, root by root: one root for a loss, one for each element of a sample's output otherwise.

    Attributes:
        captured: the forms of each root; None if they are captured anew whenever they are asked for.
        stream: ``stream(take, first)`` captures the forms root by root (or of the first one only) and hands them over by
            parameter; returns the paths.
        roots: number of roots.
        count: number of samples.
        facts: what is known of the rows besides.
        reads: the tensors that stand for the parameters, and the inputs if forms are captured anew: what must not change.
    """

    captured: list[Captured] | None
    stream: Callable[[Take, bool], dict[str, str]]
    roots: int
    count: int
    facts: RowFacts
    reads: tuple[Tensor, ...]


@dataclass(frozen=True)
class Asked:
    """What rows are wanted, and how.

    Attributes:
        text: what was asked of hesse, for error messages.
        outputs: which elements of a sample's output, for output Jacobians (see `chosen_cotangents`).
        keep: whether all forms are captured at once and kept, or anew for every quantity.
        attached: whether results are to be differentiable by the user's parameters.
    """

    text: str
    outputs: Outputs = None
    keep: bool = True
    attached: bool = False


def capture_rows(model: Model, loss: Loss, batch: Any, asked: Asked) -> Rows:
    """Run the model on a batch and capture the forms of every row of the parameter Jacobian.

    Cost: one forward pass and one backward pass without weight gradients (for the output Jacobian one an output element).
    The first call for a model and a shape runs the model on a few samples more, to plan and to check.
    """
    inputs, targets = split_batch(batch, asked.text, target_needed=loss is not None)
    count = sample_count(inputs, targets if loss is not None else None, asked.text)
    check_inputs(model, inputs, asked.text)
    inputs, targets = _ordinary(inputs), _ordinary(targets)
    _refuse_complex(model, asked.text)
    forward = run_forward(model, inputs, count, asked.text, attached=asked.attached)
    output = forward.output
    if not output.requires_grad:
        _refuse_detached(forward, asked.text)
    if output.ndim == 0 or output.numel() % count:
        raise StructureError(
            asked.text, f"an output of shape {tuple(output.shape)} for {count} samples", "return one output a sample"
        )
    taken = None if loss is None else _take_apart(loss, forward, targets, asked.text)
    if taken is not None:
        cotangents, shape = [taken[1]], torch.Size((count,))
    else:
        cotangents, shape = chosen_cotangents(output, count, asked.outputs)
    mass, additive = (taken[0].mass, taken[0].additive) if taken is not None else (1.0, True)
    facts = RowFacts("output" if taken is None else "loss", shape, output.dtype, output.device, mass, additive, asked.attached)

    def check() -> None:
        if taken is not None and loss is not None:
            _check_loss(loss, forward, targets, taken[0], asked.text)

    return _rows(forward, cotangents, facts, asked, check)


def _ordinary(part: Any) -> Any:
    """The same with copies in the place of inference tensors, which no graph can keep."""
    if not any(isinstance(leaf, Tensor) and leaf.is_inference() for leaf in tree.leaves(part)):
        return part
    return tree.map_tree(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf, part)


def rows_of(forward: Forward, cotangents: Sequence[Tensor], mass: float, additive: bool, asked: Asked) -> Rows:
    """The rows of any cotangents of a model's output, of a run that was made already.

    Args:
        forward: the run; the first axis of its output is the batch.
        cotangents: laid out like the output; they may be made when they are asked for. Row ``[n, k]`` is the derivative of
            sample n's output times cotangent k.
        mass, additive: how rows are normalized, see `RowFacts`.
        asked: what for, and whether forms are kept.

    Raises:
        UnsupportedError: the first axis of the output is not the batch. Others as `capture_rows`.

    Cost: one backward pass without weight gradients a cotangent.
    """
    output = forward.output
    _refuse_complex(forward.model, asked.text)
    if output.shape[:1] != (forward.count,):
        raise UnsupportedError(
            asked.text,
            f"an output of shape {tuple(output.shape)} for {forward.count} samples",
            "return a tensor whose first axis is the batch: output=lambda o: o.reshape(n, -1)",
        )
    shape = torch.Size((forward.count, len(cotangents)))
    facts = RowFacts("root", shape, output.dtype, output.device, mass, additive, asked.attached)
    return _rows(forward, cotangents, facts, asked, lambda: None)


def _rows(forward: Forward, cotangents: Sequence[Tensor], facts: RowFacts, asked: Asked, check: Callable[[], None]) -> Rows:
    captured, walk, plan = _captured(forward, cotangents, asked, check)

    def again(take: Take, first: bool = False) -> dict[str, str]:
        return stream(forward, walk, plan, [cotangents[0]] if first else cotangents, take)

    reads = (*forward.leaves.values(), *(() if asked.keep else _tensors(forward.inputs)))
    return Rows(captured, again, len(cotangents), forward.count, facts, reads)


def _refuse_complex(model: Model, asked: str) -> None:
    for name, leaf in tree.named_leaves(model.params):
        if leaf.is_complex():
            raise UnsupportedError(
                asked, f"complex parameter '{name}'", "hold it as real numbers: torch.view_as_complex(p) inside the model"
            )


def _tensors(inputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree.leaves(inputs) if isinstance(leaf, Tensor)]


def _captured(
    forward: Forward, cotangents: Sequence[Tensor], asked: Asked, check: Callable[[], None]
) -> tuple[list[Captured] | None, Walk, Plan]:
    """The forms of all roots, unless they are not to be kept; checked if the graph is new."""
    walk = forward.walk
    plan, is_new = plan_of(forward, walk, asked.text)
    captured: list[Captured] | None = None
    if plan.reason:
        captured = [capture_one_by_one(forward, u, plan.reason, asked.text) for u in cotangents]
    elif asked.keep:
        captured = [capture(forward, walk, plan, u) for u in cotangents]
    if is_new:
        check()

        def row_of(sample: int) -> dict[str, Tensor]:
            if captured:
                return row_of_forms(captured[0].forms, sample)
            found: dict[str, Tensor] = {}
            stream(
                forward,
                walk,
                plan,
                [cotangents[0]],
                lambda root, name, forms: found.update(row_of_forms({name: forms}, sample)),
            )
            return found

        try:
            wrong = check_one_sample(forward, row_of, cotangents[0], asked.text)
        except BaseException:
            forget(forward)
            raise
        if wrong:
            forget(forward)
            captured = [capture_one_by_one(forward, u, wrong, asked.text) for u in cotangents]
    return captured, walk, plan


def _take_apart(loss: Callable[[Any, Any], Tensor], forward: Forward, targets: Any, asked: str) -> tuple[BatchLoss, Tensor]:
    """The contributions of the samples, and the cotangent of the output that belongs to their sum."""
    with torch.enable_grad():
        output = forward.output if forward.attached else forward.output.detach().requires_grad_()
        if known_loss(loss) is None:
            alone = forward.output.detach().requires_grad_()
            _require_connected(lambda: batch_loss(loss, alone, targets, forward.model, asked), alone, asked)
        taken = loss_by_sample(loss, output, targets, forward.count, asked)
        if not taken.contributions.requires_grad:
            return taken, torch.zeros_like(output)
        options: dict[str, Any] = {"create_graph": forward.attached, "allow_unused": True, "materialize_grads": True}
        (cotangent,) = torch.autograd.grad(taken.contributions, output, torch.ones_like(taken.contributions), **options)
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


def chosen_cotangents(output: Tensor, count: int, outputs: Outputs) -> tuple[list[Tensor], torch.Size]:
    """The cotangents that pick elements of every sample's output, and the shape of the rows.

    Args:
        output: ``[n, ...]``; a sample's elements are counted as in ``output[i].flatten()``.
        count: n.
        outputs: None: all, rows of the output's shape. An int: this one, rows ``[n]``. A list of k ints: rows ``[n, k]``. An
            integer tensor ``[n]`` or ``[n, k]``: each sample's own.

    Raises:
        UnsupportedError: the output is complex, or its first axis is not the batch.
        StructureError: `outputs` does not fit.
    """
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
    if outputs is None:
        picks, shape = torch.arange(width).expand(count, width), output.shape
    else:
        own = isinstance(outputs, Tensor) and outputs.ndim > 0
        several = isinstance(outputs, Sequence) and all(isinstance(pick, int) for pick in outputs)
        whole = several or isinstance(outputs, (int, Tensor))
        given = torch.as_tensor(outputs).cpu() if whole else torch.empty(0)
        whole = whole and not given.dtype.is_floating_point and given.dtype != torch.bool and given.numel() > 0
        given = given.long()
        if (
            not whole
            or given.ndim > 1 + own
            or (own and len(given) != count)
            or not -width <= given.min() <= given.max() < width
        ):
            raise StructureError(
                f"outputs= picks among the {width} elements of each of {count} outputs.",
                f"{outputs!r}"
                if not isinstance(outputs, Tensor)
                else f"a tensor of shape {tuple(given.shape)}, {outputs.dtype}",
                f"pass an int, a list of ints, or an integer tensor [{count}] or [{count}, k], of numbers below {width}",
            )
        picks = given.reshape(count, -1) if own else given.reshape(-1).expand(count, given.numel())
        shape = torch.Size((count,)) if given.ndim == int(own) else torch.Size((count, picks.shape[1]))
    cotangents = []
    for pick in picks.to(output.device).unbind(1):
        unit = torch.zeros(count, width, dtype=output.dtype, device=output.device)
        cotangents.append(unit.scatter_(1, (pick % width).unsqueeze(1), 1).reshape(output.shape))
    return cotangents, shape


def _check_loss(loss: Callable[[Any, Any], Tensor], forward: Forward, targets: Any, taken: BatchLoss, asked: str) -> None:
    """The user's batch loss has to be what its samples add up to (once for every new graph)."""
    mass = float(taken.mass)
    if getattr(loss, "reduction", None) == "none" or mass == 0:
        return
    with torch.no_grad():
        value = loss(forward.output, targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        return
    whole = float(value)
    terms = taken.contributions.detach().double()
    total, size = float(terms.sum()) / mass, float(terms.abs().sum()) / mass
    if abs(whole - total) > max(1e-3, 8 * torch.finfo(value.dtype).eps) * size + 1e-6:
        raise MixedSamplesError(
            asked, f"a batch loss of {whole:.6g} where its samples add up to {total:.6g}", "report this loss"
        )
