"""Runs a function, its derivative and the derivative's derivative, each op recorded."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.autodiff.fused import differentiable_attention, plain_recurrences
from hesse.autodiff.graphs.modules import ModuleCalls
from hesse.autodiff.graphs.recorder import Outside, Recorder
from hesse.autodiff.recording import nodes
from hesse.core.errors import StructureError
from hesse.core.tree import Tree, named_leaves

Named = Sequence[tuple[str, Tensor]]


@dataclass(frozen=True)
class Recipe:
    """What to record.

    Attributes:
        order: 0 for the forward pass alone, 1 with the backward pass, 2 with the backward pass of that.
        values: take ranges and non-finite counts.
        cotangent: what to send backward, nested as the output; None to find a loss in it.
    """

    order: Literal[0, 1, 2]
    values: bool
    cotangent: Tree | None


def record_run(
    call: Callable[[], Any],
    variables: Named,
    outside: Sequence[tuple[Tensor, Outside]],
    modules: ModuleCalls,
    recipe: Recipe,
) -> tuple[Recorder, list[str]]:
    """Run a function and its derivatives in recorded plain autograd.

    Args:
        call: the function with its arguments.
        variables: what to differentiate by, with names, as far as it requires grad. Leaves that require grad and that the
            function reaches by itself (closures, globals) come along.
        outside: what to call tensors that are not made by the function.
        modules: the modules known by name.
        recipe: what to record.

    Returns:
        The recorder, with all nodes; and what to tell the user (which loss was taken, what is missing and why).

    Raises:
        StructureError: a cotangent that does not match the output.

    Cost: the function once; at order 1 one gradient, at order 2 three. A reduction for every output of every op where values
        are taken.
    """
    recorder, notes = Recorder(outside, modules, recipe.values), list[str]()
    with ExitStack() as stack:
        if recipe.order == 2:
            stack.enter_context(differentiable_attention())
            stack.enter_context(plain_recurrences())
        if "torch._dynamo" in sys.modules:  # compiled parts run op by op
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="Using `torch.compile\\(module\\)` when there are global hooks")
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(modules.watching())
        with recorder:
            output = call()
        answers = _answers(recorder, output)
        if recipe.order:
            asked = [(name, value) for name, value in variables if recorder.concerns(name, value)]
            _derive(recorder, answers, asked, recipe, output, notes)
    return recorder, notes


def _answers(recorder: Recorder, output: Any) -> Named:
    """Write the outputs down; those that can be differentiated, with names."""
    found = named_leaves(output)
    named = [(name or "output", value) for name, value in found]
    for name, value in named:
        recorder.result(value, name, "answer")
    return [(name, value) for name, value in named if isinstance(value, Tensor) and value.requires_grad]


def _derive(recorder: Recorder, answers: Named, variables: Named, recipe: Recipe, output: Any, notes: list[str]) -> None:
    """The backward pass and, at order 2, its own."""
    recorder.stage = 1
    if not answers:
        notes.append(f"nothing to differentiate: {_why_none(output)}; the forward graph alone")
        return
    losses, seeds = _cotangents(answers, recipe.cotangent, output, notes)
    for (name, _), seed in zip(losses, seeds, strict=True):
        recorder.name_outside(seed, f"cotangent of {name}")
    targets = _targets(recorder, losses, variables)
    twice = recipe.order == 2
    for seed in seeds:
        seed.requires_grad_(twice)  # so that what can be differentiated once only says so
    values = [value for _, value in losses]
    leaves = [leaf for _, leaf in targets]
    try:
        with recorder:
            gradients = torch.autograd.grad(values, leaves, seeds, create_graph=twice, allow_unused=True)
    except RuntimeError as error:
        again = "a second time" in str(error)
        notes.append(
            "the function runs a backward pass by itself, which the graph shows; there is none to add"
            if again
            else f"the backward pass stops short: {str(error).splitlines()[0]}"
        )
        return
    _results(recorder, targets, gradients, "gradient by", notes)
    if twice:
        _derive_again(recorder, targets, gradients, notes)


def _why_none(output: Any) -> str:
    """Why no output can be differentiated."""
    leaves = [value for _, value in named_leaves(output)]
    if any(isinstance(value, Tensor) for value in leaves):
        return "no output depends on a tensor that requires grad through the graph"
    kinds = ", ".join(dict.fromkeys(type(value).__name__ for value in leaves)) or type(output).__name__
    return f"no output is a tensor (but {kinds}); a function returns tensors, or lists, dicts, dataclasses of them"


def _derive_again(recorder: Recorder, targets: Named, gradients: Sequence[Tensor | None], notes: list[str]) -> None:
    """The Hessian's product with the gradient: what a backward pass through the backward pass computes."""
    recorder.stage = 2
    curved = [gradient for gradient in gradients if gradient is not None and gradient.requires_grad]
    seeds = [gradient.detach() for gradient in curved]
    try:
        with recorder:
            products = torch.autograd.grad(curved, [leaf for _, leaf in targets], seeds, allow_unused=True)
    except RuntimeError as error:
        notes.append(f"double backward stops short: {str(error).splitlines()[0]}")
        return
    if any(node.name().endswith("::Error") for node in nodes([gradient.grad_fn for gradient in curved])):
        notes.append("double backward stops short: an op is marked as differentiable once only (`once_differentiable`)")
    elif all(product is None for product in products):
        notes.append("no double backward: the gradient does not depend on what was differentiated by")
    if all(product is None for product in products):
        return
    notes.append("double backward: the product of the Hessian with the gradient")
    _results(recorder, targets, products, "Hessian x gradient by", notes)


def _results(recorder: Recorder, targets: Named, results: Sequence[Tensor | None], title: str, notes: list[str]) -> None:
    missing = [name for (name, _), result in zip(targets, results, strict=True) if result is None]
    for (name, leaf), result in zip(targets, results, strict=True):
        if result is not None:
            recorder.result(result, f"{title} {name}", "gradient", leaf)
    if missing:
        shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        notes.append(f"no {title.removesuffix(' by')} reaches {shown}")


def _cotangents(answers: Named, cotangent: Tree | None, output: Any, notes: list[str]) -> tuple[Named, list[Tensor]]:
    """What is differentiated, and the cotangent of each."""
    if cotangent is not None:
        given = {name or "output": value for name, value in named_leaves(cotangent)}
        taken = [(name, value) for name, value in answers if name in given]
        wrong = [
            f"{name} {_shape(value)} for {_shape(given[name])}" for name, value in taken if given[name].shape != value.shape
        ]
        unknown = sorted(set(given) - {name or "output" for name, _ in named_leaves(output)})
        if wrong or unknown or not taken:
            found = "; ".join([*wrong, *(f"no output '{name}'" for name in unknown)]) or "no output that it belongs to"
            raise StructureError(
                "The cotangent has the structure and the shapes of the output.", found, "pass one that matches"
            )
        return taken, [given[name].detach().to(value) for name, value in taken]
    taken = [answer for answer in answers if answer[0] == "loss"] or list(answers[:1])
    if taken[0][1].numel() != 1:
        taken = list(answers)
        notes.append("the output is no scalar: its sum was differentiated (`cotangent=` says otherwise)")
    elif len(answers) > 1:
        notes.append(f"differentiated: the output '{taken[0][0]}' alone (`cotangent=` says otherwise)")
    return taken, [torch.ones_like(value) for _, value in taken]


def _shape(value: Tensor) -> str:
    return str(list(value.shape))


def _targets(recorder: Recorder, losses: Named, variables: Named) -> Named:
    """The variables that require grad, and the leaves that the function reached by itself."""
    targets = [(name, value) for name, value in variables if value.requires_grad]
    known = {id(value) for _, value in targets}
    for node in nodes([value.grad_fn for _, value in losses]):
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and id(leaf) not in known:
            known.add(id(leaf))
            targets.append((recorder.called(leaf), leaf))
    return targets
