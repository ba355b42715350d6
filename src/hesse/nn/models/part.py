"""What every model and layer is: a pure function of parameters, inputs and state, with one calling convention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from hesse.core.tree import Tree


class Part(ABC):
    """A pure function ``f(params, x, state=None, *, training=False, generator=None)``.

    A part without state returns its output. A part with state (running statistics, the hidden state of a recurrence) returns
    ``(output, new_state)`` and never writes into the state that it was given; ``state=None`` is where it starts. `training`
    switches dropout on and makes normalizations use the batch's statistics. Parts hold nothing but their options, so they
    pickle, compare equal by options, and can be traced.
    """

    @property
    @abstractmethod
    def stateful(self) -> bool:
        """Whether the call returns ``(output, new_state)``."""

    @abstractmethod
    def __call__(
        self,
        params: Tree,
        x: Tensor,
        state: Tree = None,
        *,
        training: bool = False,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The output, or ``(output, new_state)`` of a part with state.

        Args:
            params: the tree that the constructor returned, or one of the same structure.
            x: the input, with a leading batch axis or as a single sample.
            state: of the previous call; None to start.
            training: dropout on, statistics of the batch.
            generator: source of dropout's random numbers; None takes torch's global one, as `torch.nn` does.
        """
