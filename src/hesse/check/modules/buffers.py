"""Derivatives with respect to floating-point buffers, as far as a module is differentiable in them."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from hesse.autodiff.passes import backward_pass
from hesse.check.functions.case import first_line
from hesse.check.functions.subject import inner, is_continuous, random_state_kept
from hesse.check.modules.exact import Slope, exact_specimen, judge_slope, products
from hesse.check.modules.ledger import Ledger
from hesse.check.modules.specimen import Specimen
from hesse.core.random import normal

_MOST = 8  # buffers that are compared


def check_buffers(specimen: Specimen, ledger: Ledger) -> None:
    """Compare derivatives by buffers with differences in float64.

    Buffers are no variables by convention: one that no gradient reaches is noted, not failed, and those that a call overwrites,
    such as the vectors of a power iteration, are passed over.

    Cost: 1 evaluation, and 1 gradient and usually 4 evaluations for each of up to 8 buffers.
    """
    exact = exact_specimen(specimen)
    if exact is None:
        return
    written = _written(specimen)
    own = {name: b for name, b in exact.module.named_buffers() if b.layout is torch.strided and is_continuous(b) and b.numel()}
    names = [name for name in own if name not in written]
    for name in names[:_MOST]:
        try:
            _check(exact, ledger, name)
        except Exception as error:
            ledger.note(f"buffer '{name}': {first_line(error)}")
    specimen.evaluations += exact.evaluations


def _written(s: Specimen) -> set[str]:
    """The buffers that a call of the module writes to."""
    if not s.copyable:
        return set()
    own = s.copied()
    before = {name: (b, b._version, b.clone()) for name, b in own.named_buffers() if b.layout is torch.strided}
    args, named = s.call.build(s.call.moving)
    s.evaluations += 1
    with torch.no_grad(), suppress(Exception), random_state_kept([*s.call.values.values(), *own.parameters()]):
        own(*args, **named)
    now = dict(own.named_buffers())
    return {name for name, (b, version, value) in before.items()
            if now.get(name) is not b or b._version != version or not torch.equal(b, value)}  # fmt: skip


def _check(s: Specimen, ledger: Ledger, name: str) -> None:
    path, _, key = name.rpartition(".")
    slots = s.module.get_submodule(path)._buffers
    home = slots[name.rpartition(".")[2]]
    if home is None:
        return

    def run(value: Tensor) -> list[Tensor]:
        slots[key] = value
        try:
            return list(s.outputs_of(s.module, s.call.moving).values())
        finally:
            slots[key] = home

    leaf = home.detach().clone().requires_grad_()
    outputs = run(leaf)
    u = [normal(y.shape, y.dtype, y.device, s.generator) for y in outputs]
    (gradient,) = backward_pass(outputs, [leaf], u)
    size = home.abs().square().mean().sqrt().item() or 1.0
    v = size * normal(home.shape, home.dtype, home.device, s.generator)

    def phi(t: float) -> float:
        return inner(u, [y.detach() for y in run(home + t * v)])

    values = [y.detach() for y in outputs]
    slope = Slope(phi, inner([v], [gradient]), products([v], [gradient]), products(u, values))
    if gradient.any():
        judge_slope(ledger, "buffers", slope, name)
    elif slope.differs(slope.difference()):
        ledger.note(f"the outputs depend on buffer '{name}', but no gradient reaches it")
