"""`SpatialNetwork`: convolutions with batch normalization, dropout, activations and pooling."""

from __future__ import annotations

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
from hesse.nn.models.options import (
    Activation,
    activation_function,
    dropout_per_layer,
    features_of,
    per_layer,
    require_positive,
)
from hesse.nn.models.part import Part


def SpatialNetwork(  # noqa: PLR0913 - the network's options, and where its parameters come from
    input_features: int = 3,
    hidden_features: int | Sequence[int] = (16, 32, 64),
    *,
    kernel_size: int | Sequence[int] = 5,
    padding: int | Sequence[int] | None = None,
    batch_normalization: bool = False,
    dropout: float | Sequence[float] = 0.0,
    activation: Activation = "relu",
    poolings: int | Sequence[int] = 1,
    input_stride: int = 1,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[SpatialNetworkFunction, Tree]:
    """A convolutional network: for each layer dropout of channels, a convolution, batch normalization, activation, max pooling.

    Args:
        input_features: channels of the input.
        hidden_features: channels of each layer; a number is a single layer.
        kernel_size: of every convolution, or one a layer.
        padding: zeros on each side, one for all or one a layer; None keeps the size at stride 1 ("same": of the k - 1 zeros
            of an even kernel, the odd one goes below and to the right, as in PyTorch).
        batch_normalization: between convolution and activation.
        dropout: probability for the channels that enter every layer, or one a layer; on in training only.
        activation: name in `torch.nn.functional`, or a callable.
        poolings: size and stride of the max pooling after every layer, or one a layer; 1 is none.
        input_stride: of the first convolution; the others have stride 1.
        generator: source of the initial values; None takes torch's global one.
        dtype: of the parameters.
        device: of the parameters.

    Returns:
        ``(f, params)``. ``f(params, x)`` takes ``[channels, height, width]`` or ``[batch, channels, height, width]``; with
        batch normalization ``f(params, x, state, training=...)`` returns ``(output, new_state)``.
        ``params``: ``{"layer1": {"weight": [out, in, k, k], "bias": [out], "normalization": {"weight", "bias"}}, ...}``, drawn
        as `torch.nn.Conv2d` and `torch.nn.BatchNorm2d` draw theirs.

    Raises:
        StructureError: options that do not fit each other; unknown activation.
    """
    require_positive("input_features", input_features)
    widths = features_of(hidden_features)
    activation_function(activation)
    count = len(widths)
    paddings = None if padding is None else per_layer("padding", padding, count)
    windows = Windows(
        per_layer("kernel_size", kernel_size, count), paddings, per_layer("poolings", poolings, count), input_stride
    )
    probabilities = dropout_per_layer(dropout, count)
    f = SpatialNetworkFunction(input_features, widths, windows, batch_normalization, probabilities, activation)
    draw, before, params = Initializer(generator, dtype, device), input_features, {}
    for index, (width, k) in enumerate(zip(widths, windows.kernel_sizes, strict=True)):
        layer: dict[str, Any] = draw.affine(width, before, k, k)
        if batch_normalization:
            layer["normalization"] = draw.normalization(width)
        params[f"layer{index + 1}"], before = layer, width
    return f, params


@dataclass(frozen=True)
class Windows:
    """Kernel sizes, paddings (None: same) and poolings of the layers, and the stride of the first."""

    kernel_sizes: tuple[int, ...]
    paddings: tuple[int, ...] | None
    poolings: tuple[int, ...]
    input_stride: int

    def __post_init__(self) -> None:
        if min(*self.kernel_sizes, *self.poolings, self.input_stride) < 1 or min(self.paddings or (0,)) < 0:
            asked = "Kernel sizes, poolings and strides are positive, paddings not negative."
            raise StructureError(asked, repr(self), "correct the option")

    def stride(self, index: int) -> int:
        """Of one convolution."""
        return self.input_stride if index == 0 else 1

    def pads(self, index: int) -> tuple[int, int]:
        """Zeros before and behind."""
        if self.paddings is not None:
            return self.paddings[index], self.paddings[index]
        total = self.kernel_sizes[index] - 1
        return total // 2, total - total // 2

    def size_after(self, index: int, size: int) -> int:
        """The height or width that leaves a layer, pooling included."""
        convolved = (size + sum(self.pads(index)) - self.kernel_sizes[index]) // self.stride(index) + 1
        return convolved // self.poolings[index]

    def convolve(self, index: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """One layer's convolution, with its padding."""
        first, last = self.pads(index)
        if first != last:
            x, first = torch.nn.functional.pad(x, (first, last, first, last)), 0
        return torch.nn.functional.conv2d(x, weight, bias, stride=self.stride(index), padding=first)


@dataclass(frozen=True)
class SpatialNetworkFunction(Part):
    """The pure function that `SpatialNetwork` returns; its fields are the network's options."""

    input_features: int
    hidden_features: tuple[int, ...]
    windows: Windows
    batch_normalization: bool
    dropout: tuple[float, ...]
    activation: Activation

    @property
    def stateful(self) -> bool:
        """Whether the layers keep running statistics."""
        return self.batch_normalization

    def initial_state(self, params: Tree) -> Tree:
        """Running statistics before any batch: ``{"layer1": {"running_mean", "running_var"}, ...}``, empty without them."""
        if not self.batch_normalization:
            return {}
        return {name: initial_statistics(layer["normalization"]["weight"]) for name, layer in params.items()}

    def output_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """``(channels, height, width)`` of the output for images of this size.

        Raises:
            StructureError: images so small that a layer has no output.
        """
        sizes = [height, width]
        for index in range(len(self.hidden_features)):
            sizes = [self.windows.size_after(index, size) for size in sizes]
            if min(sizes) < 1:
                asked = f"Layer {index + 1} has no output for images of {height} x {width}."
                raise StructureError(asked, f"{sizes[0]} x {sizes[1]} are left", "larger images, smaller kernels or poolings")
        return self.hidden_features[-1], sizes[0], sizes[1]

    def __call__(
        self,
        params: Tree,
        x: Tensor,
        state: Tree = None,
        *,
        training: bool = False,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The output, or ``(output, new_state)`` with batch normalization (see `SpatialNetwork`)."""
        self._check(x)
        z = x if x.ndim == 4 else x.unsqueeze(0)
        before = self.initial_state(params) if state is None else state
        after, act = {}, activation_function(self.activation)
        for index, p in enumerate(self.dropout):
            name = f"layer{index + 1}"
            layer = params[name]
            z = drop(z, p, training=training, generator=generator, channels=True)
            z = self.windows.convolve(index, z, layer["weight"], layer["bias"])
            if self.batch_normalization:
                z, after[name] = batch_norm(z, layer["normalization"], before[name], training=training)
            z = act(z)
            if (size := self.windows.poolings[index]) > 1:
                z = torch.nn.functional.max_pool2d(z, size)
        output = z if x.ndim == 4 else z.squeeze(0)
        return (output, after) if self.stateful else output

    def _check(self, x: Tensor) -> None:
        if not (x.is_floating_point() or x.is_complex()):
            raise LeafError(
                "A spatial network takes floating input.", f"{x.dtype}", "convert with x.to(torch.get_default_dtype())"
            )
        if x.ndim not in (3, 4) or x.shape[-3] != self.input_features:
            asked = (
                f"This network takes [batch, {self.input_features}, height, width] or [{self.input_features}, height, width]."
            )
            raise StructureError(asked, f"an input of shape {tuple(x.shape)}", "move the channels in front of height and width")
        self.output_shape(x.shape[-2], x.shape[-1])
