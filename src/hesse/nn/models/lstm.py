"""`RecurrentLSTMNetwork`: long short-term memory, with batch normalization or without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hesse.core.tree import Tree
from hesse.nn.models.initialization import Initializer
from hesse.nn.models.lstm_normalized import NormalizedLSTMFunction
from hesse.nn.models.part import Part
from hesse.nn.models.recurrence import Carried, EqualSteps, OutputType
from hesse.nn.models.recurrent import gate_parameters


def RecurrentLSTMNetwork(
    input_features: int = 10,
    hidden_features: int = 100,
    *,
    output_type: OutputType = "last",
    batch_normalization: bool = False,
    max_batch_normalization_layers: int = 10,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Part, Tree]:
    """Long short-term memory: i, f, g, o of W_ih x + W_hh h + b; c = f c + i g; h = o tanh(c).

    Args:
        input_features: elements of the input at one step.
        hidden_features: elements of h and of c.
        output_type: "last": h of the last step; "all": of every step.
        batch_normalization: normalize the gates (before their nonlinearities) and the cell (before its tanh), with statistics
            of their own for each time step, after Cooijmans et al., "Recurrent batch normalization" (ICLR 2017).
        max_batch_normalization_layers: time steps with statistics of their own; later steps share those of the last.
        generator: source of the initial values; None takes torch's global one.
        dtype: of the parameters.
        device: of the parameters.

    Returns:
        ``(f, params)``. ``f(params, x, state=None, training=...)`` takes ``[batch, steps, input_features]`` or
        ``[steps, input_features]`` and returns ``(output, {"h": ..., "c": ...})`` (`Recurrence`); with batch normalization the
        state has "statistics" too, which outlive a sequence: start the next with ``{"statistics": state["statistics"]}``.
        ``params``: ``weight_ih`` ``[4 hidden, input]``, ``weight_hh`` ``[4 hidden, hidden]`` and ``bias`` ``[4 hidden]`` in
        PyTorch's order i, f, g, o; with batch normalization no bias, but "gates" and "cell", each with ``weight`` (0.1) and
        ``bias`` (0), shared over time. Weights uniform within 1 / sqrt(hidden), as in `torch.nn.LSTM`, zero biases.

    Raises:
        StructureError: widths that are not positive, an unknown output_type.
    """
    draw = Initializer(generator, dtype, device)
    params = gate_parameters(draw, input_features, hidden_features, 4)
    if not batch_normalization:
        return LSTMFunction(input_features, hidden_features, output_type), params
    f = NormalizedLSTMFunction(input_features, hidden_features, output_type, max_batch_normalization_layers)
    tree: dict[str, Tree] = {name: params[name] for name in ("weight_ih", "weight_hh")}
    tree["gates"] = draw.normalization(4 * hidden_features, weight=0.1)
    tree["cell"] = draw.normalization(hidden_features, weight=0.1)
    return f, tree


@dataclass(frozen=True)
class LSTMFunction(EqualSteps):
    """The pure function that `RecurrentLSTMNetwork` returns without batch normalization."""

    carries: ClassVar[tuple[str, ...]] = ("h", "c")

    def _step(self, weights: Tensor, inputs: Tensor, carried: Carried) -> Carried:
        h, c = carried
        i, f, g, o = torch.addmm(inputs, h, weights).chunk(4, 1)
        c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
        return o.sigmoid() * c.tanh(), c
