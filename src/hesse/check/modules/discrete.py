"""Inputs of whole numbers that a module takes for labels: where it refuses others, or jumps between them."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.check.modules.ledger import Ledger
from hesse.check.modules.specimen import Named, Specimen

_STEPS = {torch.bfloat16: 2.0**-3, torch.float16: 2.0**-6}  # of which an eighth can still be told from 1
_STEP = 2.0**-10
_SHRINK = 8.0
_SEEN = 1e-3  # a jump this small beside the outputs is none


def hold_discrete(specimen: Specimen, ledger: Ledger, outputs: Named) -> None:
    """Hold floating-point inputs of whole numbers (signs, zeros and ones) from which the module cannot be moved smoothly.

    Losses take targets of this kind: one raises beyond [0, 1], another compares with 1. Derivatives by them mean nothing.

    Args:
        specimen: the module.
        ledger: where to note it.
        outputs: at the inputs as they are.

    Cost: 2 to 4 evaluations for each input of whole numbers, and none for others.
    """
    s = specimen
    for name, value in s.call.moving.items():
        if value.is_complex() or value.numel() < 2 or not torch.equal(value, value.round()) or not value.any():
            continue
        reason = _jumps(s, name, value, outputs)
        if reason and (s.parameters() or len(s.call.moving) > 1):
            s.call.held.add(name)
            ledger.note(f"held: {name}, whole numbers from which the module {reason}")


def _jumps(s: Specimen, name: str, value: Tensor, outputs: Named) -> str:
    step = _STEPS.get(value.dtype, _STEP)
    changes = []
    for size in (step, step / _SHRINK):
        found = 0.0
        for sign in (1.0, -1.0):
            try:
                with torch.no_grad():
                    moved = s.outputs_of(s.module, {**s.call.moving, name: value + sign * size * (1 + value.abs())})
            except Exception as error:
                return f"does not move: it raises {type(error).__name__}"
            found = max(found, *(float((moved[key] - y).abs().max()) if y.numel() else 0.0 for key, y in outputs.items()))
        changes.append(found)
    largest = max(float(y.abs().max()) if y.numel() else 0.0 for y in outputs.values())
    return "jumps" if changes[1] > 0.5 * changes[0] and changes[1] > _SEEN * largest else ""
