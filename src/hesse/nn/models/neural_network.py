"""`NeuralNetwork`: linear layers with batch normalization, dropout and activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.core.errors import LeafError, StructureError
from hesse.core.tree import Tree
from hesse.nn.models.batch_normalization import batch_norm, initial_statistics
from hesse.nn.models.dropout import dropout as drop
from hesse.nn.models.initialization import Initializer
from hesse.nn.models.options import Activation, activation_function, dropout_per_layer, features_of, require_positive
from hesse.nn.models.part import Part


def NeuralNetwork(  # noqa: PLR0913 - the network's options, and where its parameters come from
    input_features: int = 10,
    hidden_features: int | Sequence[int] = (100, 2),
    *,
    batch_normalization: bool = False,
    dropout: float | Sequence[float] = 0.0,
    activation: Activation = "relu",
    classifier: bool = False,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[NeuralNetworkFunction, Tree]:
    """A multi-layer perceptron: for each layer dropout, a linear map, batch normalization, the activation.

    Args:
        input_features: elements of one sample, whatever its shape.
        hidden_features: width of each layer, the last of which is the size of the output; a number is a single layer.
        batch_normalization: between linear map and activation.
        dropout: probability for the input of every layer, or one a layer; on in training only.
        activation: name in `torch.nn.functional`, or a callable (a function of a module if the network is to be pickled).
        classifier: leave normalization and activation away from the last layer, whose outputs are then logits.
        generator: source of the initial values; None takes torch's global one.
        dtype: of the parameters.
        device: of the parameters.

    Returns:
        ``(f, params)``. ``f(params, x)`` takes ``[input_features]``, ``[batch, input_features]`` or samples of any shape with
        that many elements, and returns ``[hidden_features[-1]]`` or ``[batch, hidden_features[-1]]``; with batch normalization
        ``f(params, x, state, training=...)`` returns ``(output, new_state)``.
        ``params``: ``{"layer1": {"weight": [out, in], "bias": [out], "normalization": {"weight", "bias"}}, ...}``, drawn as
        `torch.nn.Linear` and `torch.nn.BatchNorm1d` draw theirs.

    Raises:
        StructureError: options that do not fit each other; unknown activation.
    """
    require_positive("input_features", input_features)
    widths = features_of(hidden_features)
    activation_function(activation)
    probabilities = dropout_per_layer(dropout, len(widths))
    f = NeuralNetworkFunction(input_features, widths, batch_normalization, probabilities, activation, classifier)
    draw, before, params = Initializer(generator, dtype, device), input_features, {}
    for index, width in enumerate(widths):
        layer: dict[str, Any] = draw.affine(width, before)
        if f.normalizes(index):
            layer["normalization"] = draw.normalization(width)
        params[f"layer{index + 1}"], before = layer, width
    return f, params


@dataclass(frozen=True)
class NeuralNetworkFunction(Part):
    """The pure function that `NeuralNetwork` returns; its fields are the network's options."""

    input_features: int
    hidden_features: tuple[int, ...]
    batch_normalization: bool
    dropout: tuple[float, ...]
    activation: Activation
    classifier: bool

    @property
    def stateful(self) -> bool:
        """Whether some layer keeps running statistics."""
        return any(self.normalizes(index) for index in range(len(self.hidden_features)))

    def normalizes(self, index: int) -> bool:
        """Whether this layer (from 0) is normalized."""
        return self.batch_normalization and not self._is_bare(index)

    def _is_bare(self, index: int) -> bool:
        return self.classifier and index == len(self.hidden_features) - 1

    def initial_state(self, params: Tree) -> Tree:
        """Running statistics before any batch: ``{"layer1": {"running_mean", "running_var"}, ...}``."""
        layers = [f"layer{i + 1}" for i in range(len(self.hidden_features)) if self.normalizes(i)]
        return {name: initial_statistics(params[name]["normalization"]["weight"]) for name in layers}

    def __call__(
        self,
        params: Tree,
        x: Tensor,
        state: Tree = None,
        *,
        training: bool = False,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The output, or ``(output, new_state)`` with batch normalization (see `NeuralNetwork`)."""
        single, z = self._samples(x)
        before = self.initial_state(params) if state is None else state
        after, act = {}, activation_function(self.activation)
        for index, p in enumerate(self.dropout):
            name = f"layer{index + 1}"
            layer = params[name]
            z = drop(z, p, training=training, generator=generator)
            if z.ndim == 1:
                z = torch.addmv(layer["bias"], layer["weight"], z)  # one op, where `linear` takes several
            else:
                z = torch.nn.functional.linear(z, layer["weight"], layer["bias"])
            if self.normalizes(index):
                z, after[name] = batch_norm(z, layer["normalization"], before[name], training=training)
            if not self._is_bare(index):
                z = act(z)
        if not self.stateful:
            return z
        return (z.squeeze(0) if single else z), after

    def _samples(self, x: Tensor) -> tuple[bool, Tensor]:
        """Whether x is a single sample, and x as ``[batch, input_features]`` (a single one without state: flat)."""
        if not (x.is_floating_point() or x.is_complex()):
            raise LeafError(
                "A neural network takes floating input.", f"{x.dtype}", "convert with x.to(torch.get_default_dtype())"
            )
        if x.ndim > 1 and math.prod(x.shape[1:]) == self.input_features:
            return False, x.flatten(1)
        if x.numel() == self.input_features:
            return True, x.reshape(1, -1) if self.stateful else x.flatten()
        asked = f"This network takes samples with {self.input_features} elements."
        raise StructureError(asked, f"an input of shape {tuple(x.shape)}", "pass [batch, ...] or a single sample of that size")
