"""`RecurrentFWNetwork`: a recurrence with fast weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.tree import Tree
from hesse.nn.models.initialization import Initializer
from hesse.nn.models.part import Part
from hesse.nn.models.recurrence import Carried, EqualSteps, OutputType
from hesse.nn.models.recurrent import gate_parameters


def RecurrentFWNetwork(  # noqa: PLR0913 - the network's options, and where its parameters come from
    input_features: int = 10,
    hidden_features: int = 100,
    *,
    output_type: OutputType = "last",
    decay: float = 0.9,
    rate: float = 0.5,
    inner_steps: int = 1,
    layer_normalization: bool = True,
    eps: float = 1e-5,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Part, Tree]:
    """Fast weights (Ba, Hinton, Mnih, Leibo, Ionescu, "Using fast weights to attend to the recent past", NeurIPS 2016).

    At each step A = decay A + rate h hᵀ, one matrix for each sample. Then, from s = 0, ``inner_steps + 1`` times
    s = relu(LN(W_ih x + W_hh h + b + A s)); the last s is the new h.

    Args:
        input_features: elements of the input at one step.
        hidden_features: elements of h; A is hidden x hidden for each sample.
        output_type: "last": h of the last step; "all": of every step.
        decay: λ of the paper, what remains of A from step to step.
        rate: η of the paper, how much of h hᵀ enters A.
        inner_steps: S of the paper, how often A is applied in a step.
        layer_normalization: the LN above; without it s = relu(...) alone.
        eps: in LN's square root.
        generator: source of the initial values; None takes torch's global one.
        dtype: of the parameters.
        device: of the parameters.

    Returns:
        ``(f, params)``. ``f(params, x, state=None)`` takes ``[batch, steps, input_features]`` or ``[steps, input_features]``
        and returns ``(output, {"h": ..., "A": ...})`` (`Recurrence`). ``params``: ``weight_ih`` ``[hidden, input]``,
        ``weight_hh`` ``[hidden, hidden]``, ``bias`` ``[hidden]``, and "normalization" with ``weight`` (1) and ``bias`` (0).
        Weights uniform within 1 / sqrt(hidden), zero biases.

    Raises:
        StructureError: widths that are not positive, a negative number of inner steps, an unknown output_type.
    """
    f = FastWeightsFunction(input_features, hidden_features, output_type, decay, rate, inner_steps, layer_normalization, eps)
    draw = Initializer(generator, dtype, device)
    params: dict[str, Any] = gate_parameters(draw, input_features, hidden_features, 1)
    if layer_normalization:
        params["normalization"] = draw.normalization(hidden_features)
    return f, params


@dataclass(frozen=True)
class FastWeightsFunction(EqualSteps):
    """The pure function that `RecurrentFWNetwork` returns."""

    decay: float
    rate: float
    inner_steps: int
    layer_normalization: bool
    eps: float

    carries: ClassVar[tuple[str, ...]] = ("h", "A")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner_steps < 0:
            raise StructureError("inner_steps is not negative.", f"{self.inner_steps}", "0 leaves the fast weights unused")

    def _shape_of(self, name: str, batch: int) -> tuple[int, ...]:
        size = self.hidden_features
        return (batch, size, size) if name == "A" else (batch, size)

    def _weights(self, params: Tree) -> tuple[Tensor, Tree]:
        return params["weight_hh"].t(), params.get("normalization")

    def _step(self, weights: tuple[Tensor, Tree], inputs: Tensor, carried: Carried) -> Carried:
        (h, A), (of_hidden, normalization) = carried, weights
        A = torch.baddbmm(A, h.unsqueeze(2), h.unsqueeze(1), beta=self.decay, alpha=self.rate)
        slow = torch.addmm(inputs, h, of_hidden)
        s = self._settle(slow, normalization)
        for _ in range(self.inner_steps):
            s = self._settle(torch.baddbmm(slow.unsqueeze(2), A, s.unsqueeze(2)).squeeze(2), normalization)
        return s, A

    def _settle(self, z: Tensor, normalization: Tree) -> Tensor:
        if self.layer_normalization:
            weight, bias = normalization["weight"], normalization["bias"]
            z = torch.nn.functional.layer_norm(z, (self.hidden_features,), weight, bias, self.eps)
        return z.relu()
