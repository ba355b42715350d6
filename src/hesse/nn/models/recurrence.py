"""What the recurrent networks share: shapes, states, the walk over time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.tree import Tree
from hesse.nn.models.options import require_last
from hesse.nn.models.part import Part

OutputType = Literal["last", "all"]
Carried = tuple[Tensor, ...]


@dataclass(frozen=True)
class Recurrence(Part):
    """A recurrence over time: what is carried from step to step is the state, and its first tensor is the output.

    A subclass says how it walks over time.
    """

    input_features: int
    hidden_features: int
    output_type: OutputType

    carries: ClassVar[tuple[str, ...]] = ("h",)  # the names of what is carried, in the state

    def __post_init__(self) -> None:
        if self.output_type not in ("last", "all"):
            remedy = "output_type='last' (the last step) or 'all' (every step)"
            raise StructureError("output_type says which outputs come back.", repr(self.output_type), remedy)
        if min(self.input_features, self.hidden_features) < 1:
            found = f"{self.input_features} and {self.hidden_features}"
            raise StructureError("input_features and hidden_features are positive.", found, "pass positive widths")

    @property
    def stateful(self) -> bool:
        """True: every recurrence returns ``(output, new_state)``."""
        return True

    def __call__(
        self,
        params: Tree,
        x: Tensor,
        state: Tree = None,
        *,
        training: bool = False,
        generator: torch.Generator | None = None,
    ) -> Any:
        """``(output, new_state)`` of a sequence.

        Args:
            params: the tree that the constructor returned, or one of the same structure.
            x: ``[batch, steps, input_features]``, or ``[steps, input_features]`` for one sequence.
            state: of the previous call (a dict; what it lacks starts at zero); None to start.
            training: for normalizations.
            generator: not used.

        Returns:
            the output, ``[batch, hidden_features]`` or ``[batch, steps, hidden_features]`` by `output_type`, and the new state.
            They hang on the graph: detach the state to cut back-propagation through time.

        Raises:
            StructureError: other shapes, an unknown name in the state.
        """
        if not isinstance(state, dict | None):
            asked = f"The state of this network is a dict of {', '.join(self.carries + self._extras())}."
            raise StructureError(asked, f"a {type(state).__name__}", "pass what it returned, or None to start")
        single = x.ndim == 2
        sequences = x.unsqueeze(0) if single else x
        self._check(sequences, x)
        carried = self._start(sequences, state or {}, single)
        outputs, carried, more = self._walk(params, sequences, carried, state or {}, training=training)
        output = outputs[-1] if self.output_type == "last" else torch.stack(outputs, 1)
        new = dict(zip(self.carries, carried, strict=True))
        if single:
            output, new = output.squeeze(0), {name: t.squeeze(0) for name, t in new.items()}
        return output, new | more

    def _check(self, sequences: Tensor, x: Tensor) -> None:
        require_last(sequences, self.input_features, "A recurrent network")
        if sequences.ndim != 3 or sequences.shape[1] == 0:
            asked = "A recurrent network takes [batch, steps, features] or [steps, features], with at least one step."
            raise StructureError(asked, f"an input of shape {tuple(x.shape)}", "reshape it")

    def _extras(self) -> tuple[str, ...]:
        """Names in the state beside what is carried."""
        return ()

    def _shape_of(self, name: str, batch: int) -> tuple[int, ...]:
        return (batch, self.hidden_features)

    def _start(self, x: Tensor, state: dict[str, Any], single: bool) -> Carried:
        """What is carried into the first step: from the state, or zeros."""
        known = self.carries + self._extras()
        wrong = [name for name in state if name not in known]
        if wrong:
            raise StructureError(f"The state of this network has {', '.join(known)}.", repr(wrong[0]), "pass what it returned")
        carried = []
        for name in self.carries:
            shape = self._shape_of(name, x.shape[0])
            given = state.get(name)
            tensor = x.new_zeros(shape) if given is None else given.unsqueeze(0) if single else given
            if tensor.shape != shape:
                asked = f"State {name!r} has shape {shape[1:] if single else shape} here."
                raise StructureError(asked, f"{tuple(tensor.shape)}", "pass the state of the same batch, or None to start")
            carried.append(tensor)
        return tuple(carried)

    @abstractmethod
    def _walk(
        self, params: Tree, x: Tensor, carried: Carried, state: dict[str, Any], *, training: bool
    ) -> tuple[list[Tensor], Carried, dict[str, Any]]:
        """The outputs of all steps, what is carried out, and the rest of the new state."""


class EqualSteps(Recurrence):
    """A recurrence whose steps are all the same function."""

    def _walk(
        self, params: Tree, x: Tensor, carried: Carried, state: dict[str, Any], *, training: bool
    ) -> tuple[list[Tensor], Carried, dict[str, Any]]:
        weights, outputs = self._weights(params), []
        for inputs in self._inputs(params, x):
            carried = self._step(weights, inputs, carried)
            outputs.append(carried[0])
        return outputs, carried, {}

    def _weights(self, params: Tree) -> Any:
        """What a step needs of the parameters."""
        return params["weight_hh"].t()

    def _inputs(self, params: Tree, x: Tensor) -> Sequence[Any]:
        """What each step needs of the input: the products with the input's weights, all steps in one product."""
        return project(params, x).unbind(1)

    @abstractmethod
    def _step(self, weights: Any, inputs: Any, carried: Carried) -> Carried:
        """One step."""


def project(params: Tree, x: Tensor) -> Tensor:
    """The input's part of all gates, with the bias (if there is one): ``[batch, steps, gates * hidden]``."""
    return torch.nn.functional.linear(x, params["weight_ih"], params.get("bias"))
