"""A module under torch's transforms: the adjoint identity of forward and reverse mode, and batching by `vmap`."""

from __future__ import annotations

import torch

from hesse.autodiff.functional import functional
from hesse.autodiff.passes import forward_pass
from hesse.check.functions.case import first_line
from hesse.check.functions.subject import inner, random_state_kept
from hesse.check.modules.exact import along_kink
from hesse.check.modules.ledger import Ledger
from hesse.check.modules.specimen import Named, Specimen, continuous_outputs
from hesse.core.random import normal

_BATCH = 3
_FLOOR = 0.1  # of the outputs: terms so large may cancel in the slope
_NOISE = 30.0  # times what the sums may be off by their types


def check_adjoint(specimen: Specimen, ledger: Ledger) -> None:
    """``<J v, u> = <v, J^T u>`` for a random direction of all leaves at once.

    Cost: 1 pass in forward mode.
    """
    s = specimen
    leaves = {**{name: p.detach() for name, p in s.parameters().items()}, **s.call.moving}
    direction = {name: normal(x.shape, x.dtype, x.device, s.generator) * _size(x) for name, x in leaves.items()}
    for name, row in s.still.items():
        direction[name][row] = 0
    if s.by_design:
        return
    names, parameters, module = list(leaves), set(s.parameters()), s.copied()  # which may keep what it sees

    def run(values: list[torch.Tensor]) -> list[torch.Tensor]:
        given = dict(zip(names, values, strict=True))
        own = {name: given[name] for name in names if name in parameters}
        return list(s.outputs_of(module, {name: t for name, t in given.items() if name not in parameters}, own).values())

    try:
        pushed = forward_pass(run, list(leaves.values()), list(direction.values()))
    except (RuntimeError, NotImplementedError) as error:
        ledger.note(f"no forward mode: {first_line(error)}")
        return
    u = list(s.cotangents.values())
    v, g = list(direction.values()), [s.gradients[name] for name in names]
    left, right = inner(u, pushed), inner(v, g)
    pairs = [*zip(u, pushed, strict=True), *zip(v, g, strict=True)]
    size = sum(inner([a], [a]) ** 0.5 * inner([b], [b]) ** 0.5 for a, b in pairs)
    size += _FLOOR * sum(inner([u.abs()], [s.outputs[name].abs()]) for name, u in s.cotangents.items())  # of terms that cancel
    epsilon = max((torch.finfo(d).eps for d in ledger.dtypes if d.is_floating_point or d.is_complex), default=2.0**-52)
    if abs(left - right) <= _NOISE * epsilon * size:
        ledger.fine("adjoint identity")
    elif along_kink(s, direction):
        ledger.note("adjoint identity: a kink, where forward and reverse mode may take other sides")
    else:
        ledger.wrong("adjoint identity", f"<J v, u> = {left:.6g}, but <v, J^T u> = {right:.6g}")


def check_vmap(specimen: Specimen, ledger: Ledger) -> None:
    """A stack of inputs under `torch.vmap` gives the outputs and gradients that they give one by one.

    Cost: 4 gradients.
    """
    s = specimen
    inputs = s.call.moving
    if not inputs:
        return
    if s.draws:
        ledger.note("vmap: not compared, as the module draws random numbers, others for a stack")
        return
    stacks = {name: torch.stack([(1.0 - 0.03 * i) * t for i in range(_BATCH)]) for name, t in inputs.items()}
    stacks = {name: t.requires_grad_() for name, t in stacks.items()}
    module = s.copied()  # which may keep what it sees
    own = functional(module)[0]

    def one(given: Named) -> Named:
        passed = {name: t.clone() for name, t in given.items()} if s.in_place else given
        args, named = s.call.build(passed)
        return continuous_outputs(own({}, *args, **named))

    s.evaluations += 1
    try:
        with torch.enable_grad(), random_state_kept(list(inputs.values())):
            batched = torch.vmap(one, randomness="same")(stacks)
    except Exception as error:
        ledger.note(f"no vmap: {first_line(error)}")
        return
    leaves = {**s.parameters(module), **stacks}
    moving = {name: t for name, t in leaves.items() if t.requires_grad}
    total = [inner_of(s.cotangents[name].expand_as(y), y) for name, y in batched.items() if y.requires_grad]
    expected_outputs, expected = _one_by_one(s, stacks)
    if not ledger.agree("vmap: outputs", {n: y.detach() for n, y in batched.items()}, expected_outputs, words="under vmap"):
        return
    try:
        if total:
            torch.stack(total).sum().backward()
    except RuntimeError as error:
        ledger.note(f"no backward pass behind vmap: {first_line(error)}")
        return
    found = {name: torch.zeros_like(t) if t.grad is None else t.grad.to_dense() for name, t in moving.items()}
    ledger.agree("vmap: gradients", found, expected, words="under vmap")


def inner_of(u: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Re <u, y>, differentiable, in float64."""
    return ((u.conj() * y).real if y.is_complex() else u * y).sum().double()


def _one_by_one(s: Specimen, stacks: Named) -> tuple[Named, Named]:
    outputs: list[Named] = []
    gradients: list[Named] = []
    for index in range(_BATCH):
        y, g = s.gradient(None, {name: t.detach()[index] for name, t in stacks.items()})
        outputs.append(y)
        gradients.append(g)
    summed = {name: torch.stack([g[name] for g in gradients]) for name in gradients[0]}
    return ({name: torch.stack([y[name] for y in outputs]) for name in outputs[0]},
            {name: t if name in stacks else t.sum(0) for name, t in summed.items()})  # fmt: skip


def _size(x: torch.Tensor) -> float:
    return x.abs().double().square().mean().sqrt().item() or 1.0
