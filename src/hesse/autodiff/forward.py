"""One run of a model on a batch, with its graph."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.compiled.unrecorded import unrecorded
from hesse.autodiff.functional import buffers_preserved
from hesse.autodiff.fused import FUSED_RECURRENCES, differentiable_attention, plain_recurrences
from hesse.autodiff.layout import Walk
from hesse.autodiff.model import Model, select_rows
from hesse.autodiff.recording import nodes
from hesse.autodiff.weight_norm import FUSED_WEIGHT_NORM, PlainWeightNorm
from hesse.core import tree
from hesse.core.errors import HesseError, StructureError, UnsupportedError


@dataclass(frozen=True, eq=False)
class Forward:
    """One run of a model on a batch, with its graph.

    Attributes:
        model, inputs, count: the model, what it was run on, and the number of samples.
        output: what it returned.
        leaves: name -> the tensor that stands for the parameter in the graph.
        drew_random_numbers: whether the run did; `random_state`: the state of the generators before it.
        attached: whether the leaves hang on the user's own parameters, so that results are differentiable.
    """

    model: Model
    inputs: Any
    count: int
    output: Tensor
    leaves: dict[str, Tensor]
    drew_random_numbers: bool
    random_state: list[Tensor]
    attached: bool = False

    @property
    def walk(self) -> Walk:
        """The graph between output and parameters."""
        return Walk.of(self.output, self.leaves)

    def restore_random_state(self) -> None:
        """Set the random state to what it was before the run (inside `torch.random.fork_rng`)."""
        set_random_state(self.random_state, self.model.device)


def run_forward(
    model: Model, inputs: Any, count: int, asked: str, *, attached: bool = False, any_output: bool = False
) -> Forward:
    """Run the model once as its user would, with its parameters as the leaves of the graph; its buffers are put back.

    Args:
        model, inputs, count, asked: the model, the inputs, the number of samples, and what is asked, for error messages.
        attached: run it such that the gradient can be differentiated by the user's parameters: fused kernels without a second
            derivative give way to plain ops.
        any_output: let through what is no tensor.

    Raises:
        StructureError: the model returned something else than a tensor.
    """
    named = tree.named_leaves(model.params)
    _, structure = tree.flatten(model.params)
    before = random_state(model.device)

    def run() -> tuple[dict[str, Tensor], Any]:
        if attached:
            leaves = {name: _link(model.own.get(name, leaf)) for name, leaf in named}
        else:
            leaves = {name: leaf.detach().requires_grad_() for name, leaf in named}
        return leaves, model.call(structure.unflatten(leaves.values()), inputs)

    with torch.enable_grad(), buffers_preserved(model.module), differentiable_attention() if attached else nullcontext():
        leaves, output = run()
        if attached and isinstance(output, Tensor) and _is_fused(output):
            set_random_state(before, model.device)
            with plain_recurrences(), PlainWeightNorm():
                leaves, output = run()
    drew = draws_since(before, model.device)
    if not isinstance(output, Tensor) and not any_output:
        raise StructureError(asked, f"the model returned {type(output).__name__}", "pick the tensor: output=lambda o: o.logits")
    return Forward(model, inputs, count, output, leaves, drew, before, attached)


def _is_fused(output: Tensor) -> bool:
    return any(node.name() in FUSED_RECURRENCES | FUSED_WEIGHT_NORM for node in nodes([output.grad_fn]))


def _link(own: Tensor) -> Tensor:
    return torch.ops.aten.alias.default(own) if own.requires_grad else own.detach().requires_grad_()


def random_state(device: torch.device) -> list[Tensor]:
    """The state of every random generator that a model on this device draws from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def draws_since(before: list[Tensor], device: torch.device) -> bool:
    """Whether random numbers were drawn since `random_state` was read; a record holds the draws, and not this question."""
    with unrecorded() if torch._C._len_torch_dispatch_stack() else nullcontext():
        return any(not torch.equal(a, b) for a, b in zip(before, random_state(device), strict=True))


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    """Set what `random_state` read."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def run_samples(forward: Forward, samples: Tensor, asked: str, *, attached: bool = False) -> Forward:
    """Run the model of a batch on some of its samples.

    Raises:
        UnsupportedError: it fails on these.
    """
    try:
        return run_forward(forward.model, select_rows(forward.inputs, samples), len(samples), asked, attached=attached)
    except HesseError:
        raise
    except Exception as error:
        raise UnsupportedError(
            asked,
            f"the model runs on {forward.count} samples, but not on {len(samples)} of them: {type(error).__name__}: {error}",
            "make it work for any number of samples (statistics of the batch need more than one: call model.eval())",
        ) from error
