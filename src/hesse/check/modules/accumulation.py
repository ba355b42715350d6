"""Gradients as training uses them: accumulated into `.grad`, and subtracted from the parameters."""

from __future__ import annotations

import torch
from torch import nn

from hesse.check.modules.aliases import alias_slots
from hesse.check.modules.ledger import Ledger
from hesse.check.modules.specimen import Named, Specimen
from hesse.core.random import normal

_STEP = 0.1  # an update's size beside the parameters'


def check_accumulation(specimen: Specimen, ledger: Ledger) -> None:
    """`.grad` after a backward pass, after a second one, and after one onto numbers that stood there.

    The user's own module is run, since copies have no hooks on their parameters.

    Cost: 3 gradients.
    """
    s, module = specimen, specimen.original
    for parameter in module.parameters():
        parameter.grad = None
    prior = {name: normal(g.shape, g.dtype, g.device, s.generator) * (g.abs().max() if g.numel() else 1.0)
             for name, g in s.gradients.items()}  # fmt: skip
    try:
        leaves = _accumulate(s, module, None)
        ledger.agree("accumulation into .grad", _grads(leaves), s.gradients, words=".grad is not what autograd.grad gives")
        _accumulate(s, module, leaves)
        twice = {name: 2 * g for name, g in s.gradients.items()}
        ledger.agree("accumulation into .grad twice", _grads(leaves), twice, words="after two backward passes")
        for name, leaf in leaves.items():
            leaf.grad = prior[name].clone()
        _accumulate(s, module, leaves)
        summed = {name: g + prior[name] for name, g in s.gradients.items()}
        ledger.agree("accumulation into a filled .grad", _grads(leaves), summed, words="what stood in .grad is to be kept")
    finally:
        for parameter in module.parameters():
            parameter.grad = None


def check_update(specimen: Specimen, ledger: Ledger) -> None:
    """A step through `.grad` equals the direct update, and the module follows its parameters there.

    nn.Jacobian's `testAllUpdate` compared accumulation and update with `accUpdateGradParameters` in this way.

    Cost: 3 gradients.
    """
    s, used, fresh = specimen, specimen.copied(), specimen.untouched_copy()
    if not s.parameters():
        return
    rate = _rate(s)
    start = {name: p.detach().clone() for name, p in s.parameters(used).items()}
    _accumulate(s, used, None)
    _step(used, rate)
    updated = {name: p.detach() for name, p in s.parameters(used).items()}
    direct = {name: p - rate * s.gradients[name] for name, p in start.items()}
    ledger.agree("update through .grad", updated, direct, words="beside w - lr * gradient")
    for parameter in used.parameters():
        parameter.grad = None
    with torch.no_grad():
        for name, p in s.parameters(fresh).items():
            p.copy_(updated[name])
    here, there = s.gradient(used), s.gradient(fresh)
    words = "a module that was run and then updated differs from one that was only given the new parameters"
    ledger.agree("outputs after an update", here[0], there[0], words=words)
    ledger.agree("gradients after an update", here[1], there[1], words=words)


def check_sharing(specimen: Specimen, ledger: Ledger) -> None:
    """Two modules that share their parameters accumulate both gradients: an update gives w - 2 lr g.

    Cost: 2 gradients.
    """
    s, first, second = specimen, specimen.copied(), specimen.copied()
    if not s.parameters():
        return
    share(first, second)
    rate = _rate(s)
    start = {name: p.detach().clone() for name, p in s.parameters(first).items()}
    inputs = {name: t.requires_grad_() for name, t in s.call.moving.items()}
    runs = [s.run(module, leaves=inputs) for module in (first, second)]
    total = [term for run in runs for term in _terms(s, run.outputs)]
    if not total:
        return
    torch.stack(total).sum().backward()
    found = _grads({**s.parameters(first), **inputs})
    twice = {name: 2 * g for name, g in s.gradients.items()}
    ledger.agree("two modules that share parameters", found, twice, words="both uses are to be added up")
    _step(first, rate)
    updated = {name: p.detach() for name, p in s.parameters(second).items()}
    direct = {name: p - 2 * rate * s.gradients[name] for name, p in start.items()}
    ledger.agree("update of shared parameters", updated, direct, words="beside w - 2 * lr * gradient")


def check_reuse(specimen: Specimen, ledger: Ledger) -> None:
    """A module that is called twice in one graph, on two inputs.

    Cost: 3 gradients.
    """
    s = specimen
    other_inputs = s.shrunk()
    other = s.gradient(None, other_inputs)[1]
    inputs = {name: t.requires_grad_() for name, t in s.call.moving.items()}
    moved = {name: t.requires_grad_() for name, t in other_inputs.items()}
    one, two = s.run(leaves=inputs), s.run(leaves=moved)
    total = [*_terms(s, one.outputs), *_terms(s, two.outputs)]
    if not total:
        return
    leaves = s.parameters()
    try:
        torch.stack(total).sum().backward()
        found = _grads({**leaves, **inputs})
        second = {f"{name} of the second call": g for name, g in _grads(moved).items()}
    finally:
        for parameter in s.module.parameters():
            parameter.grad = None
    expected = {name: g + other[name] if name in leaves else g for name, g in s.gradients.items()}
    late = {f"{name} of the second call": other[name] for name in moved}
    ledger.agree("two calls in one graph", {**found, **second}, {**expected, **late}, words="when the module is used twice")


def share(first: nn.Module, second: nn.Module) -> None:
    """Let the second module, a copy of the first, use the first's parameters."""
    slots, pairs = alias_slots(second), zip(second.parameters(), first.parameters(), strict=True)
    for held, key, parameter in [(*slot, p) for own, p in pairs for slot in slots.get(id(own), ())]:
        held[key] = parameter
    for own, other in zip(first.modules(), second.modules(), strict=True):
        for name, parameter in own._parameters.items():
            if parameter is not None:
                setattr(other, name, parameter)


def _accumulate(s: Specimen, module: nn.Module, leaves: Named | None) -> Named:
    """One backward pass into `.grad`; the leaves, whose inputs serve again if given."""
    inputs = {name: t.requires_grad_() for name, t in s.call.moving.items()}
    if leaves is not None:
        inputs = {name: leaf for name, leaf in leaves.items() if name in inputs}
    run = s.run(module, leaves=inputs)
    run.backward(s.cotangents)
    return {**s.parameters(module), **inputs}


def _grads(leaves: Named) -> Named:
    return {name: torch.zeros_like(t) if t.grad is None else t.grad.detach().to_dense() for name, t in leaves.items()}


def _terms(s: Specimen, outputs: Named) -> list[torch.Tensor]:
    """<cotangent, output> of each output that depends on a leaf."""
    pairs = [(y, s.cotangents[name]) for name, y in outputs.items() if y.requires_grad]
    return [(u.conj() * y).real.sum().double() if y.is_complex() else (u * y).sum().double() for y, u in pairs]


def _rate(s: Specimen) -> float:
    own = s.parameters()
    size = sum(p.detach().abs().double().square().sum().item() for p in own.values()) ** 0.5
    slope = sum(s.gradients[name].abs().double().square().sum().item() for name in own) ** 0.5
    return _STEP * (size or 1.0) / (slope or 1.0)


def _step(module: nn.Module, rate: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                parameter.add_(parameter.grad.to_dense(), alpha=-rate)
