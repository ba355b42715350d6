"""`sequence`: parts one after the other, as one pure function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.tree import Tree
from hesse.nn.models.part import Part


def sequence(*parts: tuple[Callable[..., Any], Tree] | Callable[[Any], Any]) -> tuple[SequenceFunction, list[Tree]]:
    """Compose parts: the output of one is the input of the next.

    Args:
        *parts: ``(f, params)`` as a model, a layer, `functional(module)` or `sequence` itself gives them; or a plain callable
            ``x -> y`` without parameters.

    Returns:
        ``(f, params)``: params is the list of the parts' trees, in order, those without parameters left out. If a part has
        state, ``f(params, x, state)`` returns ``(output, new_state)``, where the state is a list with one item a part (None
        for those without).

    Raises:
        StructureError: nothing to compose, or something that is neither.
    """
    functions, params, owners = [], [], []
    for part in parts:
        function, *own = part if isinstance(part, tuple) else (part,)
        if not callable(function) or len(own) > 1 or (isinstance(function, Part) and not own):
            asked = "sequence takes pairs (f, params), and callables without parameters."
            found = f"{type(function).__name__} at place {len(functions)}, with {len(own)} trees of parameters"
            raise StructureError(asked, found, "pass what the constructors return")
        functions.append(function)
        owners.append(bool(own))
        params.extend(own)
    if not functions:
        raise StructureError("sequence composes parts.", "none", "pass at least one")
    return SequenceFunction(tuple(functions), tuple(owners)), params


@dataclass(frozen=True)
class SequenceFunction(Part):
    """The pure function that `sequence` returns.

    Attributes:
        functions: in the order of their calls.
        has_params: which of them take parameters.
    """

    functions: tuple[Callable[..., Any], ...]
    has_params: tuple[bool, ...]

    @property
    def stateful(self) -> bool:
        """Whether some part has state."""
        return any(isinstance(function, Part) and function.stateful for function in self.functions)

    def __call__(
        self,
        params: Tree,
        x: Tensor,
        state: Tree = None,
        *,
        training: bool = False,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The last part's output, or ``(output, new_state)`` if some part has state (see `sequence`)."""
        if len(params) != sum(self.has_params):
            found = f"{len(params)} trees for {sum(self.has_params)} parts with parameters"
            raise StructureError("A sequence takes one tree of parameters for each part.", found, "pass those of `sequence`")
        before = [None] * len(self.functions) if state is None else state
        if len(before) != len(self.functions):
            found = f"{len(before)} items for {len(self.functions)} parts"
            raise StructureError("A sequence takes one state for each part.", found, "pass the state of the last call")
        after, own, y = [], iter(params), x
        for function, has_params, old in zip(self.functions, self.has_params, before, strict=True):
            new = None
            if isinstance(function, Part):
                y = function(next(own), y, old, training=training, generator=generator)
                y, new = y if function.stateful else (y, None)
            else:
                y = function(next(own), y) if has_params else function(y)
            after.append(new)
        return (y, after) if self.stateful else y
