"""A module as a function of one tree, parameters and inputs by name, for the checks of functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from hesse.autodiff.functional import functional
from hesse.check.check_report import CheckReport
from hesse.check.derivatives import checked
from hesse.check.functions.case import Level
from hesse.check.modules.aliases import alias_slots
from hesse.check.modules.call import Call
from hesse.check.modules.specimen import Named, Specimen, continuous_outputs
from hesse.check.reproducer import of_module
from hesse.check.written import Expression, written
from hesse.core.errors import StructureError

_Place = tuple[Any, Any]  # a dict or a list, and the key in it


class Bound(nn.Module):
    """``{name: parameter or input} -> outputs by name`` of a module; copies and casts take the module along.

    The tensors given as parameters stay in the module until the next call, and come back for the backward pass of theirs, in
    which a module may run again (checkpoints do).

    Args:
        module: under check; its parameters are replaced for good.
        call: its inputs, of which those that do not move are held as buffers, so that casts reach them.
        parameters: names of those that move.
        in_place: whether the inputs are copied in front of the module, which writes to them.
        still: rows of parameters that stay, by name.
    """

    def __init__(self, module: nn.Module, call: Call, parameters: list[str], still: dict[str, int], *, in_place: bool) -> None:
        super().__init__()
        self.module = module
        self._call, self._own, self._in_place = call, parameters, in_place
        self._still = {name: (row, index) for index, (name, row) in enumerate(still.items()) if name in parameters}
        for name, (row, index) in self._still.items():
            self.register_buffer(f"row_{index}", module.get_parameter(name).detach()[row].clone())
        self._fixed = [name for name, _ in call.constants()]
        for index, (_, value) in enumerate(call.constants()):
            self.register_buffer(f"fixed_{index}", value)
        self.training = module.training  # of this wrapper only: parts may be in modes of their own
        self._shapes: dict[str, torch.Size] | None = None
        self._places: dict[str, list[_Place]] | None = None

    def forward(self, leaves: dict[str, Tensor]) -> Named:
        """The module's outputs at parameters and inputs by name."""
        own = {name: leaves[name].contiguous() for name in self._own}  # parameters are; kernels rely on it
        self._require_shapes(own)
        for name, (row, index) in self._still.items():
            mask = torch.arange(len(own[name]), device=own[name].device)[:, None] == row
            own[name] = torch.where(mask, self.get_buffer(f"row_{index}"), own[name])
        inputs = {name: t.clone() if self._in_place else t for name, t in leaves.items() if name not in self._own}
        fixed = {name: self.get_buffer(f"fixed_{index}") for index, name in enumerate(self._fixed)}
        args, named = self._call.build({**fixed, **inputs})
        self._install(own)
        outputs = continuous_outputs(self.module(*args, **named))
        for y in outputs.values():
            if y.requires_grad and own:
                with suppress(RuntimeError):  # tensors of torch.func have no hooks
                    y.register_hook(lambda _: self._install(own))
        return outputs

    def _require_shapes(self, own: dict[str, Tensor]) -> None:
        if self._shapes is None:
            self._shapes = {name: p.shape for name, p in self.module.named_parameters()}
        for name, tensor in own.items():
            if tensor.shape != self._shapes[name]:
                raise StructureError(f"'{name}' is a parameter.", f"shape {tuple(tensor.shape)}",
                                     f"keep its shape {tuple(self._shapes[name])}")  # fmt: skip

    def _install(self, own: dict[str, Tensor]) -> None:
        if self._places is None:
            self._places = _places(self.module)
        for name, tensor in own.items():
            for slots, key in self._places[name]:
                slots[key] = tensor


def _places(module: nn.Module) -> dict[str, list[_Place]]:
    """Where each parameter stands in the module, under its first name; tied ones stand in several places, lists included."""
    first: dict[int, str] = {}
    besides = alias_slots(module)
    places: dict[str, list[_Place]] = {}
    for path, part in module.named_modules():
        for key, parameter in part._parameters.items():
            if parameter is not None:
                name = first.setdefault(id(parameter), f"{path}.{key}" if path else key)
                places.setdefault(name, besides.pop(id(parameter), [])).append((part._parameters, key))
    return places


def check_values(specimen: Specimen, level: Level, limit: int) -> CheckReport:
    """The checks of functions, on a module: parameters and inputs are the leaves.

    Args:
        specimen: the module.
        level: of the check.
        limit: of evaluations.

    Cost: at most the limit.
    """
    s = specimen
    parameters = {name: p.detach() for name, p in s.parameters().items() if name not in s.by_design}
    leaves, name = {**parameters, **s.call.whole}, type(s.module).__name__
    words = f"held, since its gradient is scaled by frequency and no derivative: {', '.join(sorted(s.by_design))}"
    notes = (words,) if s.by_design else ()
    if not leaves:
        return CheckReport(name, level, (), (), notes, 0)
    with _parameters_kept(s.module):
        report = checked(_bound(s, list(parameters)), leaves, level=level, name=name, generator=s.generator, limit=limit)
    return replace(report, notes=(*report.notes, *notes), reproducer=_filled(report.reproducer, s))


@contextmanager
def _parameters_kept(module: nn.Module) -> Iterator[None]:
    """Put back what stands in a module's slots for parameters; a module that cannot be copied gets others there."""
    kept = [(slots, key, slots[key]) for own in _places(module).values() for slots, key in own]
    try:
        yield
    finally:
        for slots, key, parameter in kept:
            slots[key] = parameter


def _filled(reproducer: str, s: Specimen) -> str:
    """A reproducer whose function calls the module, which is left to be filled in."""
    moving = {name: Expression(f"leaves[{name!r}]{'.clone()' if s.in_place else ''}") for name in s.call.moving}
    args, named = s.call.build(cast("dict[str, Tensor]", moving))
    mode = "train" if s.module.training else "eval"
    return of_module(reproducer, f"{type(s.module).__name__}, .{mode}()", written(args), written(named))


def _bound(s: Specimen, parameters: list[str]) -> Callable[[Any], Any]:
    module = s.copied() if s.copyable else s.module
    bound = Bound(module, s.call, parameters, s.still, in_place=s.in_place)
    return bound if s.copyable else partial(functional(bound)[0], {})  # the user's own: every call begins with its buffers
