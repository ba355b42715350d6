"""Copies of a module: deep copies, other modules that load its state, and what comes back from a file."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hesse.check.functions.case import first_line
from hesse.check.functions.subject import is_continuous, random_state_kept
from hesse.check.modules.ledger import Ledger
from hesse.check.modules.specimen import Named, Specimen
from hesse.core.random import normal

_NOISE = 0.3  # how far, relatively, the state of a copy is moved before it loads the module's


def check_copies(specimen: Specimen, ledger: Ledger) -> None:
    """Outputs and gradients of a deep copy, of a loaded copy, and after pickling and saving; nn.Jacobian's `testIO`.

    A module that cannot be copied or pickled is noted.

    Cost: 6 gradients.
    """
    s = specimen
    _check(s, ledger, "deepcopy after a call", s.copied)
    _check(s, ledger, "pickle", lambda: pickle.loads(pickle.dumps(s.module)))
    _check(s, ledger, "torch.save and torch.load", lambda: _from_file(s.module))


def check_state(specimen: Specimen, ledger: Ledger) -> None:
    """A copy that was run with other parameters and inputs and then loads the module's `state_dict` does what the module does.

    The copy was made before any run of the check, so that it also shows what a first call leaves behind.

    Cost: 3 gradients.
    """
    s, other = specimen, specimen.untouched_copy()
    state = s.module.state_dict()
    with torch.no_grad():
        for name, value in other.state_dict(keep_vars=True).items():
            if name in state and isinstance(value, Tensor) and is_continuous(value) and value.layout is torch.strided:
                noise = normal(value.shape, value.dtype, value.device, s.generator)
                value.add_(_NOISE * value.abs().mean() * noise)
    moved = _run_elsewhere(s, other)
    other.load_state_dict(state)
    _same(s, ledger, "state_dict into another copy", other)
    if moved and s.parameters():
        _independent(s, ledger, other)


def check_trained(specimen: Specimen, ledger: Ledger) -> None:
    """What two calls in train mode leave behind is in the `state_dict`, as far as eval mode depends on it.

    A module whose outputs in eval mode change from call to call, as those with a cache of what they saw do, is passed over.

    Cost: 5 evaluations.
    """
    s, trained, other = specimen, specimen.untouched_copy(), specimen.untouched_copy()
    names = list(s.outputs)
    try:
        trained.train()
        for inputs in (s.call.moving, s.shrunk()):
            args, named = s.call.build(inputs)
            s.evaluations += 1
            with random_state_kept([*inputs.values(), *trained.parameters()]):
                trained(*args, **named)
        trained.eval()
        first, again = (_evaluated(s, trained, names) for _ in range(2))
        other.eval().load_state_dict(trained.state_dict())
        loaded = _evaluated(s, other, names)
    except Exception as error:
        ledger.note(f"state after training: {first_line(error)}")
        return
    if ledger.close(list(again.values()), list(first.values())):
        ledger.agree("state_dict after training, in eval mode", loaded, first,
                     words="something that train mode computes and eval mode uses is not in the state_dict")  # fmt: skip


def _evaluated(s: Specimen, module: nn.Module, names: list[str]) -> Named:
    with torch.no_grad():
        outputs = s.outputs_of(module, s.call.moving)
    return {name: y for name, y in outputs.items() if name in names}


def _run_elsewhere(s: Specimen, other: nn.Module) -> bool:
    """Run a copy on other inputs, as far from the own ones as it accepts; whether it ran."""
    for inputs in ({name: -0.9 * t for name, t in s.call.moving.items()}, s.shrunk()):
        try:
            s.gradient(other, inputs)
        except Exception:
            continue
        return True
    return False


def _independent(s: Specimen, ledger: Ledger, other: nn.Module) -> None:
    """Whether the module stays as it is while a copy's parameters change."""
    with torch.no_grad():
        for parameter in other.parameters():
            if is_continuous(parameter):
                parameter.mul_(1.5)
    outputs = {name: y.detach() for name, y in s.outputs_of(s.module, s.call.moving).items()}
    ledger.agree("module after a change of its copy", outputs, s.outputs, words="the copy shares memory with the module")


def _check(s: Specimen, ledger: Ledger, check: str, make: Callable[[], nn.Module]) -> None:
    try:
        other = make()
    except Exception as error:
        ledger.note(f"{check}: {first_line(error)}")
        return
    for parameter in other.parameters():
        parameter.grad = None
    _same(s, ledger, check, other)


def _same(s: Specimen, ledger: Ledger, check: str, other: nn.Module) -> None:
    def compare() -> None:
        outputs, gradients = s.gradient(other)
        if set(gradients) != set(s.gradients):
            lost = sorted(set(s.gradients) ^ set(gradients))
            ledger.wrong(check, "the copy has other trainable parameters", lost[0])
        elif ledger.agree(f"{check}: outputs", outputs, s.outputs, words="of the copy"):
            ledger.agree(f"{check}: gradients", gradients, s.gradients, words="of the copy")

    ledger.attempt(check, compare)


def _from_file(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)
