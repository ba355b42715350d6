"""What calls make of a module: lazy parameters get values, others values by the data, and something may be remembered."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hesse.check.functions.subject import random_state_kept
from hesse.check.modules.call import Call
from hesse.check.modules.ledger import Ledger
from hesse.check.modules.specimen import Named, Specimen, fresh_copy


def materialized(module: nn.Module, call: Call, ledger: Ledger) -> nn.Module:
    """The module; of a lazy one, a copy with values.

    Args:
        module: the user's.
        call: its inputs.
        ledger: where to note it.

    Cost: 1 evaluation of a lazy module.
    """
    if not any(nn.parameter.is_lazy(t) for t in [*module.parameters(), *module.buffers()]):
        return module
    own = copy.deepcopy(module, _without_values(module))
    args, named = call.build(call.moving)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        own(*args, **named)
    ledger.note("a lazy module: a copy with values was checked")
    return own


def _without_values(module: nn.Module) -> dict[int, Any]:
    """What a deep copy has for parameters and buffers without values, which torch copies in part only."""
    lazy = [t for t in [*module.parameters(), *module.buffers()] if nn.parameter.is_lazy(t)]
    empty: Any = (nn.parameter.UninitializedBuffer, nn.parameter.UninitializedParameter)
    return {id(t): empty[isinstance(t, nn.Parameter)](t.requires_grad, t.device, t.dtype) for t in lazy}


def initialized(specimen: Specimen) -> nn.Module | None:
    """A copy of a module that sets parameters at its first call, and at no later one, after such a call.

    A module that writes to its parameters at each call does so too when they are put back; one that is initialized by its
    first batch (Glow's ActNorm) does not.

    Args:
        specimen: after its first run.

    Returns:
        The copy; None where the first run changed nothing, and where later ones do.

    Cost: 2 evaluations where parameters were changed.
    """
    s, before = specimen, specimen.pristine
    if before is None or not _changed(_values(before), s.module):
        return None
    own = fresh_copy(before)
    inputs = s.call.moving
    args, named = s.call.build(inputs)
    s.evaluations += 1
    with torch.no_grad(), random_state_kept([*inputs.values(), *own.parameters()]):
        own(*args, **named)  # with its own buffers, in which a flag may stand
    made, home = _values(own), _values(before)
    if not _changed(home, own):  # it was the backward pass
        return None
    with torch.no_grad():
        _put(own, home)
        s.outputs_of(own, s.call.moving)
        if _changed(home, own):
            return None
        _put(own, made)
    return own


def remembered(specimen: Specimen) -> list[str]:
    """The attributes, tensors and numbers, that a call changes.

    Args:
        specimen: the module.

    Cost: 1 evaluation.
    """
    before = _attributes(specimen.module)
    specimen.run()
    now = _attributes(specimen.module)
    return [name for name, value in now.items() if name not in before or not _is_same(before[name], value)]


def _attributes(module: nn.Module) -> dict[str, Any]:
    found = {}
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if isinstance(value, (Tensor, int, float, complex, str, type(None))):
                found[f"{path}.{key}" if path else key] = value.detach().clone() if isinstance(value, Tensor) else value
    return found


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


def _values(module: nn.Module) -> Named:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def _changed(before: Named, module: nn.Module) -> bool:
    return any(name not in before or not torch.equal(p.detach(), before[name]) for name, p in module.named_parameters())


def _put(module: nn.Module, values: Named) -> None:
    for name, p in module.named_parameters():
        p.copy_(values[name])
