"""`AlexNet`: a spatial network followed by a dense one, which fit each other by construction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.tree import Tree
from hesse.nn.models.neural_network import NeuralNetwork, NeuralNetworkFunction
from hesse.nn.models.options import Activation
from hesse.nn.models.part import Part
from hesse.nn.models.spatial_network import SpatialNetwork, SpatialNetworkFunction


class SpatialOptions(TypedDict, total=False):
    """Options of `SpatialNetwork` that `AlexNet` takes for its convolutions."""

    hidden_features: Sequence[int]
    kernel_size: int | Sequence[int]
    padding: int | Sequence[int] | None
    batch_normalization: bool
    dropout: float | Sequence[float]
    activation: Activation
    poolings: int | Sequence[int]
    input_stride: int


class DenseOptions(TypedDict, total=False):
    """Options of `NeuralNetwork` that `AlexNet` takes for its dense layers."""

    hidden_features: Sequence[int]
    batch_normalization: bool
    dropout: float | Sequence[float]
    activation: Activation
    classifier: bool


def AlexNet(
    depth: int,
    height: int,
    width: int,
    *,
    convolution: SpatialOptions | None = None,
    dense: DenseOptions | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[AlexNetFunction, Tree]:
    """Convolutions, then dense layers (Krizhevsky, Sutskever, Hinton, NeurIPS 2012; the form of arXiv:1404.5997).

    Args:
        depth: channels of the images.
        height: of the images.
        width: of the images.
        convolution: options of `SpatialNetwork`, without ``input_features``, which is `depth`.
        dense: options of `NeuralNetwork`, without ``input_features``, which follows from the image's size; ``classifier`` is
            True unless given.
        generator: source of the initial values; None takes torch's global one.
        dtype: of the parameters.
        device: of the parameters.

    Returns:
        ``(f, params)`` with ``params = {"convolution": ..., "dense": ...}``. ``f(params, x)`` takes ``[depth, height, width]``
        or ``[batch, depth, height, width]``; with batch normalization anywhere, ``f(params, x, state, training=...)`` returns
        ``(output, new_state)``.

    Raises:
        StructureError: an option that the networks do not have or that AlexNet itself sets; images too small for the layers.
    """
    spatial_options, dense_options = dict(convolution or {}), {"classifier": True, **(dense or {})}
    _refuse_unknown("convolution", spatial_options, SpatialOptions)
    _refuse_unknown("dense", dense_options, DenseOptions)
    made: Any = {"generator": generator, "dtype": dtype, "device": device}
    spatial: Any = spatial_options
    first, first_params = SpatialNetwork(depth, **spatial, **made)
    channels, rows, columns = first.output_shape(height, width)
    rest: Any = dense_options
    second, second_params = NeuralNetwork(channels * rows * columns, **rest, **made)
    return AlexNetFunction((depth, height, width), first, second), {"convolution": first_params, "dense": second_params}


def _refuse_unknown(name: str, options: Mapping[str, Any], known: type) -> None:
    wrong = [key for key in options if key not in known.__annotations__]
    if wrong:
        remedy = f"leave it away; the options are {', '.join(known.__annotations__)}"
        raise StructureError(f"AlexNet's {name} has no option {wrong[0]!r}, or sets it itself.", repr(wrong[0]), remedy)


@dataclass(frozen=True)
class AlexNetFunction(Part):
    """The pure function that `AlexNet` returns."""

    image: tuple[int, int, int]
    convolution: SpatialNetworkFunction
    dense: NeuralNetworkFunction

    @property
    def stateful(self) -> bool:
        """Whether some layer keeps running statistics."""
        return self.convolution.stateful or self.dense.stateful

    def initial_state(self, params: Tree) -> Tree:
        """Running statistics before any batch: ``{"convolution": {...}, "dense": {...}}``."""
        first = self.convolution.initial_state(params["convolution"])
        return {"convolution": first, "dense": self.dense.initial_state(params["dense"])}

    def __call__(
        self,
        params: Tree,
        x: Tensor,
        state: Tree = None,
        *,
        training: bool = False,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The output, or ``(output, new_state)`` with batch normalization (see `AlexNet`)."""
        if x.ndim not in (3, 4) or tuple(x.shape[-3:]) != self.image:
            remedy = "resize the images, or make an AlexNet of their size"
            raise StructureError(f"This AlexNet takes images of shape {self.image}.", f"{tuple(x.shape)}", remedy)
        before = self.initial_state(params) if state is None else state
        after: dict[str, Any] = {}
        z = x
        for name, part in (("convolution", self.convolution), ("dense", self.dense)):
            result = part(params[name], z, before[name], training=training, generator=generator)
            z, after[name] = result if part.stateful else (result, {})
            if name == "convolution":
                z = z.flatten(-3)
        return (z, after) if self.stateful else z
