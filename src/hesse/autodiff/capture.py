"""Capture: where parameters meet data, on the ordinary autograd graph of the plain batched forward pass.

One forward pass, one backward pass that stops at the meetings of weights and data (weight gradients are never computed), and
one rule a meeting that turns (saved input z, output cotangent g) into a form. A meeting without a rule takes the exact masked
path: its node alone is called once a sample. Every new graph is checked once against one plainly differentiated sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hesse.autodiff.functional import buffers_preserved
from hesse.autodiff.layout import Walk
from hesse.autodiff.model import Model, select_rows
from hesse.autodiff.plan import Plan, keeps_samples_apart, make_plan, moves_samples
from hesse.autodiff.uses import Captured, Collector, deliver, form_of
from hesse.core import tree
from hesse.core.errors import HesseError, MixedSamplesError, StructureError, UnsupportedError
from hesse.rules.forms import Dense

_PLANS_OF_A_MODEL = 64
_plans: WeakKeyDictionary[Any, dict[Any, Plan]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Forward:
    """One run of a model on a batch, with its graph."""

    model: Model
    inputs: Any
    count: int
    output: Tensor
    leaves: dict[str, Tensor]
    drew_random_numbers: bool
    random_state: list[Tensor]

    def restore_random_state(self) -> None:
        """Set the random state to what it was before the run (inside `torch.random.fork_rng`)."""
        torch.set_rng_state(self.random_state[0])
        if len(self.random_state) > 1:
            torch.cuda.set_rng_state(self.random_state[1], self.model.device)


def run_forward(model: Model, inputs: Any, count: int, asked: str) -> Forward:
    """Run the model once as its user would, with its parameters as the leaves of the graph; its buffers are put back."""
    named = tree.named_leaves(model.params)
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in named}
    _, structure = tree.flatten(model.params)
    before = random_state(model.device)
    with torch.enable_grad(), buffers_preserved(model.module):
        output = model.call(structure.unflatten(leaves.values()), inputs)
    drew = any(not torch.equal(a, b) for a, b in zip(before, random_state(model.device), strict=True))
    if not isinstance(output, Tensor):
        raise StructureError(asked, f"the model returned {type(output).__name__}", "pick the tensor: output=lambda o: o.logits")
    return Forward(model, inputs, count, output, leaves, drew, before)


def random_state(device: torch.device) -> list[Tensor]:
    """The state of every random generator that a model on this device draws from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def run_samples(forward: Forward, samples: Tensor, asked: str) -> Forward:
    """Run the model of a batch on some of its samples.

    Raises:
        UnsupportedError: it fails on these.
    """
    try:
        return run_forward(forward.model, select_rows(forward.inputs, samples), len(samples), asked)
    except HesseError:
        raise
    except Exception as error:
        raise UnsupportedError(
            asked,
            f"the model runs on {forward.count} samples, but not on {len(samples)} of them: {type(error).__name__}: {error}",
            "make it work for any number of samples (statistics of the batch need more than one: call model.eval())",
        ) from error


def plan_of(forward: Forward, walk: Walk, asked: str) -> tuple[Plan, bool]:
    """The plan of a graph, and whether it is new; remembered outside of the user's objects, by model and graph.

    Raises:
        UnsupportedError: reentrant checkpointing, which hides its parameters from the graph. MixedSamplesError: samples
        influence each other.
    """
    if any(node.name() == "CheckpointFunctionBackward" for node in walk.nodes):
        raise UnsupportedError(
            asked,
            "reentrant checkpointing (CheckpointFunctionBackward), which hides its parameters from the graph",
            "call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)",
        )
    own = {id(leaf): name for name, leaf in forward.leaves.items()}
    tracked = {
        i: own[id(node.variable)] for i, node in enumerate(walk.nodes) if hasattr(node, "variable") and id(node.variable) in own
    }
    training = forward.model.module is not None and forward.model.module.training
    signature = (walk.signature(), tuple(tracked.items()), forward.count, training)
    try:
        remembered = _plans.setdefault(forward.model.key, {})
    except TypeError:
        remembered = {}
    plan, is_new = remembered.get(signature), False
    if plan is None:
        plan, is_new = _new_plan(forward, walk, tracked, asked), True
        if plan.is_sure:
            remembered[signature] = plan
            while len(remembered) > _PLANS_OF_A_MODEL:
                del remembered[next(iter(remembered))]
    mover = moves_samples(plan, walk, forward.count)
    return (Plan((), reason=f"samples change places in {mover}"), True) if mover else (plan, is_new)


def _new_plan(forward: Forward, walk: Walk, tracked: dict[int, str], asked: str) -> Plan:
    kept: list[Forward] = []

    def run(samples: Tensor) -> Tensor:
        devices = [forward.model.device] if forward.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            kept.append(run_samples(forward, samples, asked))
        return kept[-1].output

    plan = make_plan(walk, forward.output.shape, tracked, forward.count, run, asked)
    if not keeps_samples_apart(plan, walk, forward.output, forward.count):
        return Plan((), reason="samples change places")
    return plan


def forget(forward: Forward) -> None:
    """Forget the plans of a model (after a plan failed its check)."""
    _plans.pop(forward.model.key, None)


def capture(forward: Forward, walk: Walk, plan: Plan, cotangent: Tensor) -> Captured:
    """The forms of every parameter for one cotangent of the output.

    Cost: one backward pass without the weight gradients; a masked meeting adds n times its node's own backward.
    """
    collector = Collector({name: [] for name in forward.leaves})
    names = {id(leaf): name for name, leaf in forward.leaves.items()}
    if not plan.meetings:
        return collector.finish()
    edges = sorted({(m.node, slot) for m in plan.meetings for slot in m.outputs})
    grads = torch.autograd.grad(
        forward.output,
        [GradientEdge(walk.nodes[i], slot) for i, slot in edges],
        cotangent,
        retain_graph=True,
        allow_unused=True,
    )
    found = dict(zip(edges, grads, strict=True))
    with torch.no_grad():
        for m in plan.meetings:
            cotangents = [found[m.node, slot] for slot in m.outputs]
            if any(g is not None for g in cotangents):
                form, path = form_of(walk, m, cotangents, forward.count)
                deliver(walk, m, form, path, names, collector)
    return collector.finish()


def capture_one_by_one(forward: Forward, cotangent: Tensor, reason: str, asked: str) -> Captured:
    """The exact path for programs whose graph changes with the batch: every sample is run alone.

    Raises:
        MixedSamplesError: the samples' outputs, or the sum of their rows, are not those of the batch.
        UnsupportedError: the model draws random numbers.

    Cost: n forward and backward passes on one sample each, and a backward pass on the batch.
    """
    if forward.drew_random_numbers:
        raise UnsupportedError(
            asked,
            f"{reason}, so that samples have to be run one by one, and the model draws random numbers",
            "call model.eval(), or make the model's operations the same for every batch size",
        )
    collector = Collector({name: [] for name in forward.leaves})
    rows: dict[str, list[Tensor]] = {name: [] for name in forward.leaves}
    shares = cotangent.reshape(forward.count, -1)
    for sample in range(forward.count):
        alone = run_samples(forward, torch.tensor([sample]), asked)
        if not same_output(alone.output, 0, 1, forward.output, sample, forward.count):
            raise MixedSamplesError(
                asked,
                f"{reason}, and the output of sample {sample} depends on the other samples of the batch",
                "use operations on each sample only (model.eval() for normalization), or loss_hessian and ggn",
            )
        for name, grad in plain_row(alone, shares[sample].reshape(alone.output.shape)).items():
            rows[name].append(grad)
    whole = plain_row(forward, cotangent)
    scale = max((float(grad.norm()) for grad in whole.values()), default=0.0)
    for name, parts in rows.items():
        if not close(torch.stack(parts).sum(0), whole[name], scale):
            raise MixedSamplesError(
                asked,
                f"{reason}, and the gradient of the batch by '{name}' is not the sum of the samples' own",
                "use operations on each sample only (model.eval() for normalization), or loss_hessian and ggn",
            )
        collector.put(name, Dense(torch.stack(parts)), "sample by sample")
    return collector.finish()


def same_output(first: Tensor, place: int, count: int, second: Tensor, other_place: int, other_count: int) -> bool:
    """Whether a sample of one output equals a sample of another (up to rounding)."""
    if first.numel() * other_count != second.numel() * count:
        return False
    a, b = first.detach().reshape(count, -1)[place], second.detach().reshape(other_count, -1)[other_place]
    return close(a, b)


def close(first: Tensor, second: Tensor, scale: float = 0.0) -> bool:
    """Whether two results of the same arithmetic in another order agree, next to each other's size and 1e-3 of `scale`."""
    eps = torch.finfo(first.dtype).eps
    size = max(float(first.norm()), float(second.norm()), 1e-3 * scale)
    return bool(float((first - second).norm()) <= 4 * eps**0.5 * size) or bool(torch.equal(first, second))


def plain_row(forward: Forward, cotangent: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter for one cotangent of the output, by plain autograd."""
    leaves = list(forward.leaves.values())
    if not forward.output.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in forward.leaves.items()}
    grads = torch.autograd.grad(forward.output, leaves, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True)
    return {name: grad.to_dense() if grad.is_sparse else grad for name, grad in zip(forward.leaves, grads, strict=True)}
