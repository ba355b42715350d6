"""`RecurrentNetwork`: the plain recurrence with tanh."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.core.tree import Tree
from hesse.nn.models.initialization import Initializer
from hesse.nn.models.part import Part
from hesse.nn.models.recurrence import Carried, EqualSteps, OutputType


def RecurrentNetwork(
    input_features: int = 10,
    hidden_features: int = 100,
    *,
    output_type: OutputType = "last",
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Part, Tree]:
    """An Elman network: h_t = tanh(W_ih x_t + W_hh h_{t-1} + b).

    Args:
        input_features: elements of the input at one step.
        hidden_features: elements of h.
        output_type: "last": h of the last step; "all": of every step.
        generator: source of the initial values; None takes torch's global one.
        dtype: of the parameters.
        device: of the parameters.

    Returns:
        ``(f, params)``. ``f(params, x, state=None)`` takes ``[batch, steps, input_features]`` or ``[steps, input_features]``
        and returns ``(output, {"h": ...})`` (`Recurrence`). ``params``: ``weight_ih`` ``[hidden, input]``, ``weight_hh``
        ``[hidden, hidden]``, ``bias`` ``[hidden]`` (the sum of the two of `torch.nn.RNN`): weights uniform within
        1 / sqrt(hidden), as there, and a zero bias.

    Raises:
        StructureError: widths that are not positive, an unknown output_type.
    """
    f = ElmanFunction(input_features, hidden_features, output_type)
    return f, gate_parameters(Initializer(generator, dtype, device), input_features, hidden_features, 1)


def gate_parameters(draw: Initializer, input_features: int, hidden_features: int, gates: int) -> dict[str, Tensor]:
    """Weights of all gates one below the other, uniform within 1 / sqrt(hidden), and a zero bias."""
    bound, rows = hidden_features**-0.5, gates * hidden_features
    weights = {"weight_ih": draw.uniform(bound, rows, input_features), "weight_hh": draw.uniform(bound, rows, hidden_features)}
    return weights | {"bias": draw.constant(0.0, rows)}


@dataclass(frozen=True)
class ElmanFunction(EqualSteps):
    """The pure function that `RecurrentNetwork` returns."""

    def _step(self, weights: Tensor, inputs: Tensor, carried: Carried) -> Carried:
        return (torch.addmm(inputs, carried[0], weights).tanh(),)
