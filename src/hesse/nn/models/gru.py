"""`RecurrentGRUNetwork`: gated recurrent units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.tree import Tree
from hesse.nn.models.initialization import Initializer
from hesse.nn.models.part import Part
from hesse.nn.models.recurrence import Carried, EqualSteps, OutputType, project
from hesse.nn.models.recurrent import gate_parameters

Reset = Literal["before", "after"]


def RecurrentGRUNetwork(
    input_features: int = 10,
    hidden_features: int = 100,
    *,
    output_type: OutputType = "last",
    reset: Reset = "before",
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Part, Tree]:
    """Gated recurrent units: r, z = sigmoid(W_ih x + W_hh h + b), h = (1 - z) n + z h.

    Args:
        input_features: elements of the input at one step.
        hidden_features: elements of h.
        output_type: "last": h of the last step; "all": of every step.
        reset: where the reset gate acts in the candidate n. "before" the product with the weights, n = tanh(W x + U (r h) + b)
            (Cho et al., "Learning phrase representations", EMNLP 2014); "after" it, n = tanh(W x + b + r (U h + b_hh)), as in
            `torch.nn.GRU`.
        generator: source of the initial values; None takes torch's global one.
        dtype: of the parameters.
        device: of the parameters.

    Returns:
        ``(f, params)``. ``f(params, x, state=None)`` takes ``[batch, steps, input_features]`` or ``[steps, input_features]``
        and returns ``(output, {"h": ...})`` (`Recurrence`). ``params``: ``weight_ih`` ``[3 hidden, input]``, ``weight_hh``
        ``[3 hidden, hidden]``, ``bias`` ``[3 hidden]`` in PyTorch's order and sense r, z, n; with reset="after" also
        ``bias_hh`` ``[hidden]`` of the candidate. Weights uniform within 1 / sqrt(hidden), as there, and zero biases.

    Raises:
        StructureError: widths that are not positive, an unknown option.
    """
    f = GRUFunction(input_features, hidden_features, output_type, reset)
    draw = Initializer(generator, dtype, device)
    params = gate_parameters(draw, input_features, hidden_features, 3)
    if reset == "after":
        params["bias_hh"] = draw.constant(0.0, hidden_features)
    return f, params


@dataclass(frozen=True)
class GRUFunction(EqualSteps):
    """The pure function that `RecurrentGRUNetwork` returns."""

    reset: Reset

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reset not in ("before", "after"):
            asked = "reset says where the reset gate acts."
            raise StructureError(asked, repr(self.reset), "reset='before' or 'after' the product with the weights")

    def _weights(self, params: Tree) -> tuple[Tensor, Tensor, Tensor | None]:
        size = self.hidden_features
        gates, candidate = params["weight_hh"].split([2 * size, size])
        return gates.t(), candidate.t(), params.get("bias_hh")

    def _inputs(self, params: Tree, x: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
        size = self.hidden_features
        gates, candidate = project(params, x).split([2 * size, size], dim=2)
        return list(zip(gates.unbind(1), candidate.unbind(1), strict=True))

    def _step(self, weights: tuple[Tensor, Tensor, Tensor | None], inputs: tuple[Tensor, Tensor], carried: Carried) -> Carried:
        (h,), (of_gates, of_candidate, bias) = carried, weights
        r, z = torch.addmm(inputs[0], h, of_gates).sigmoid().chunk(2, 1)
        if bias is None:
            n = torch.addmm(inputs[1], r * h, of_candidate).tanh()
        else:
            n = torch.addcmul(inputs[1], r, torch.addmm(bias, h, of_candidate)).tanh()
        return (torch.lerp(n, h, z),)
