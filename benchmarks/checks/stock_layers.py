"""Stock modules of one input: activations, linear and convolution layers, pooling, normalization, shapes, dropout."""

from __future__ import annotations

import torch
from torch import nn

from .stock_entry import Catalog, labels, normal, uniform

SIZES = {1: (7,), 2: (5, 6), 3: (4, 3, 5)}


def images(dim: int, channels: int = 3, batch: int = 2, *, longer: int = 0):
    """A drawer of ``[batch, channels, *space]``."""
    return normal(batch, channels, *(size + longer for size in SIZES[dim]))


def activations(add: Catalog) -> None:
    x = normal(4, 6, scale=2)
    for kind in (nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU,
                 nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink,
                 nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Identity, nn.PReLU, nn.GLU):  # fmt: skip
        add(x, kind)
    add(x, nn.ELU, alpha=0.5)
    add(x, nn.CELU, alpha=1.7)
    add(x, nn.GELU, approximate="tanh")
    add(x, nn.GLU, dim=0)
    add(x, nn.Hardshrink, lambd=1.2)
    add(x, nn.Hardtanh, -0.4, 2.5)
    add(x, nn.LeakyReLU, 0.3)
    add(images(1, 4), nn.PReLU, 4)
    add(x, nn.PReLU, init=-0.5)
    add(x, nn.RReLU, 0.1, 0.9)
    add(x, nn.Softplus, beta=3, threshold=2)
    add(x, nn.Softshrink, lambd=0.1)
    add(x, nn.Threshold, 0.2, -1.0)
    for kind in (nn.Softmax, nn.LogSoftmax, nn.Softmin):
        add(x, kind, dim=-1)
        add(images(1), kind, dim=1)
    add(images(2), nn.Softmax2d)
    for kind in (nn.ReLU, nn.ELU, nn.SiLU, nn.Hardtanh, nn.Dropout):
        add.add(f"Sequential(Linear, {kind.__name__} in place)", lambda kind=kind: _in_place(kind), normal(4, 6))


def _in_place(kind: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), kind(inplace=True))


def linear(add: Catalog) -> None:
    add(normal(4, 3), nn.Linear, 3, 5)
    add(normal(4, 3), nn.Linear, 3, 5, bias=False)
    add(normal(2, 4, 3), nn.Linear, 3, 1)
    add(normal(3), nn.Linear, 3, 2)
    add(normal(4, 3), nn.LazyLinear, 5)
    add((normal(4, 3), normal(4, 2)), nn.Bilinear, 3, 2, 5)
    add((normal(4, 3), normal(4, 2)), nn.Bilinear, 3, 2, 1, bias=False)
    add(labels(7, 3, 4), nn.Embedding, 7, 3)
    add(labels(7, 9), nn.Embedding, 7, 3, padding_idx=2)
    add(labels(7, 9), nn.Embedding, 7, 3, scale_grad_by_freq=True)
    add(labels(7, 9), nn.Embedding, 7, 3, max_norm=1.0)
    add(labels(7, 9), nn.Embedding, 7, 3, sparse=True)
    for mode in ("sum", "mean", "max"):
        add(labels(7, 3, 4), nn.EmbeddingBag, 7, 3, mode=mode)
    add(labels(7, 3, 4), nn.EmbeddingBag, 7, 3, mode="mean", padding_idx=1)
    add((labels(7, 6), constant_offsets), nn.EmbeddingBag, 7, 3, mode="sum")
    add.add(
        "Sequential(Linear, Tanh, Linear)", lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), normal(5, 3)
    )


def constant_offsets(dtype, generator):
    return labels(1, 1)(dtype, generator).new_tensor([0, 2, 2, 5])


def convolutions(add: Catalog) -> None:
    for dim, kind, transposed, lazy, lazy_transposed in (
        (1, nn.Conv1d, nn.ConvTranspose1d, nn.LazyConv1d, nn.LazyConvTranspose1d),
        (2, nn.Conv2d, nn.ConvTranspose2d, nn.LazyConv2d, nn.LazyConvTranspose2d),
        (3, nn.Conv3d, nn.ConvTranspose3d, nn.LazyConv3d, nn.LazyConvTranspose3d),
    ):
        add(images(dim), kind, 3, 4, 3)
        add(images(dim), kind, 3, 4, 2, stride=2, padding=1, bias=False)
        add(images(dim), kind, 3, 2, 2, padding="same", dilation=2)
        add(images(dim, 4), kind, 4, 6, 3, groups=2, padding=1)
        for mode in ("reflect", "replicate", "circular"):
            add(images(dim), kind, 3, 2, 3, padding=1, padding_mode=mode)
        add(images(dim), transposed, 3, 4, 3)
        add(images(dim), transposed, 3, 2, 3, stride=2, padding=1, output_padding=1)
        add(images(dim, 4), transposed, 4, 6, 2, groups=2, dilation=2, bias=False)
        add(images(dim), lazy, 4, 3)
        add(images(dim), lazy_transposed, 4, 3)
    add(images(2, 1, 1), nn.Conv2d, 1, 2, (3, 1), stride=(1, 2))
    add(images(2, 6), nn.Conv2d, 6, 6, 3, groups=6)
    add(normal(3, 5, 6), nn.Conv2d, 3, 2, 3)


def pooling(add: Catalog) -> None:
    for dim, largest, mean, to_largest, to_mean, norm in (
        (1, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d, nn.LPPool1d),
        (2, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.LPPool2d),
        (3, nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d, nn.LPPool3d),
    ):
        add(images(dim), largest, 2)
        add(images(dim), largest, 3, stride=1, padding=1, dilation=1, ceil_mode=True)
        add(images(dim), largest, 2, dilation=2, stride=2)
        add(images(dim), largest, 2, return_indices=True)
        add(images(dim), mean, 2)
        add(images(dim), mean, 3, stride=2, padding=1, ceil_mode=True, count_include_pad=False)
        add(images(dim), to_largest, 2)
        add(images(dim), to_largest, 3, return_indices=True)
        add(images(dim), to_mean, 2)
        add(images(dim), to_mean, 1)
        add(uniform(2, 3, *SIZES[dim], low=0.1, high=2), norm, 2, 2)
        add(uniform(2, 3, *SIZES[dim], low=0.1, high=2), norm, 3, 2, stride=1, ceil_mode=True)
        add(images(dim), norm, 1, 2)
    add(images(2), nn.AdaptiveAvgPool2d, (None, 2))
    add(images(2), nn.AvgPool2d, 2, divisor_override=3)
    add(images(2), nn.FractionalMaxPool2d, 2, output_size=(3, 4))
    add(images(2), nn.FractionalMaxPool2d, (2, 3), output_ratio=(0.6, 0.5))
    add(images(3, longer=2), nn.FractionalMaxPool3d, 2, output_size=3)
    windows = torch.tensor([[[0.1, 0.7], [0.4, 0.3], [0.9, 0.2]], [[0.6, 0.5], [0.2, 0.8], [0.3, 0.1]]])
    add(images(2), nn.FractionalMaxPool2d, 2, output_size=(3, 4), _random_samples=windows)
    add((normal(2, 3, 3), indices(2, 3, 3, cells=7)), nn.MaxUnpool1d, 2, stride=2)
    add((normal(2, 3, 2, 3), indices(2, 3, 2, 3, cells=24)), nn.MaxUnpool2d, 2)
    add((normal(2, 2, 2, 1, 2), indices(2, 2, 2, 1, 2, cells=32)), nn.MaxUnpool3d, 2)


def indices(batch: int, channels: int, *space: int, cells: int):
    """A drawer of distinct positions for every sample and channel, for unpooling."""

    def draw(dtype, generator):
        count = 1
        for size in space:
            count *= size
        noise = uniform(batch, channels, min(cells, 2 * count))(torch.float64, generator)
        return noise.argsort(-1)[..., :count].reshape(batch, channels, *space)

    return draw


def normalizations(add: Catalog) -> None:
    flat = normal(5, 3, scale=2, shift=1)
    for dim, batch, instance, lazy, lazy_instance in (
        (1, nn.BatchNorm1d, nn.InstanceNorm1d, nn.LazyBatchNorm1d, nn.LazyInstanceNorm1d),
        (2, nn.BatchNorm2d, nn.InstanceNorm2d, nn.LazyBatchNorm2d, nn.LazyInstanceNorm2d),
        (3, nn.BatchNorm3d, nn.InstanceNorm3d, nn.LazyBatchNorm3d, nn.LazyInstanceNorm3d),
    ):
        add(images(dim), batch, 3)
        add(images(dim), batch, 3, affine=False, momentum=None)
        add(images(dim), batch, 3, track_running_stats=False, eps=0.1)
        add(images(dim), instance, 3)
        add(images(dim), instance, 3, affine=True, track_running_stats=True)
        add(images(dim), lazy)
        add(images(dim), lazy_instance, affine=True)
    add(flat, nn.BatchNorm1d, 3)
    add(images(1, 4), nn.GroupNorm, 2, 4)
    add(images(2, 6), nn.GroupNorm, 3, 6, affine=False)
    add(normal(4, 6), nn.LayerNorm, 6)
    add(normal(2, 3, 5), nn.LayerNorm, [3, 5], bias=False)
    add(normal(4, 6), nn.LayerNorm, 6, elementwise_affine=False, eps=0.01)
    add(normal(4, 6), nn.RMSNorm, 6)
    add(normal(2, 3, 5), nn.RMSNorm, [3, 5], elementwise_affine=False, eps=0.01)
    add(images(1, 6), nn.LocalResponseNorm, 3)
    add(images(2, 6), nn.LocalResponseNorm, 2, alpha=0.5, beta=0.6, k=2)
    add(images(2, 6), nn.CrossMapLRN2d, 3, alpha=0.5)


def shapes(add: Catalog) -> None:
    for dim, reflect, replicate, circular, zero, fixed in (
        (1, nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d, nn.ZeroPad1d, nn.ConstantPad1d),
        (2, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d, nn.ZeroPad2d, nn.ConstantPad2d),
        (3, nn.ReflectionPad3d, nn.ReplicationPad3d, nn.CircularPad3d, nn.ZeroPad3d, nn.ConstantPad3d),
    ):
        for kind in (reflect, replicate, circular, zero):
            add(images(dim), kind, 1)
            add(images(dim), kind, (2, 1) + (1, 0) * (dim - 1))
        add(images(dim), fixed, 1, 3.5)
        add(images(dim), fixed, (-1, 2) + (0, 1) * (dim - 1), -0.5)
    add(images(2), nn.Flatten)
    add(images(2), nn.Flatten, 0, 2)
    add(normal(3, 6), nn.Unflatten, 1, (2, 3))
    add(images(2, 8), nn.PixelShuffle, 2)
    add(normal(2, 3, 4, 6), nn.PixelUnshuffle, 2)
    add(images(2, 6), nn.ChannelShuffle, 3)
    add(images(2), nn.Unfold, 2)
    add(images(2), nn.Unfold, (2, 3), dilation=2, padding=1, stride=2)
    add(normal(2, 8, 12), nn.Fold, (4, 5), 2)
    add(normal(2, 12, 9), nn.Fold, (5, 4), (3, 2), stride=(2, 1), padding=(1, 0))
    for dim, smooth in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
        add(images(dim), nn.Upsample, scale_factor=2)
        add(images(dim), nn.Upsample, size=(6,) * dim, mode=smooth)
        add(images(dim), nn.Upsample, scale_factor=1.5, mode=smooth, align_corners=True)
    add(images(2), nn.Upsample, scale_factor=2, mode="bicubic")
    add(images(2), nn.UpsamplingNearest2d, scale_factor=2)
    add(images(2), nn.UpsamplingBilinear2d, size=(7, 8))


def dropouts(add: Catalog) -> None:
    add(normal(4, 6), nn.Dropout, 0.3)
    add(normal(4, 6), nn.Dropout, 0.0)
    add(normal(4, 6), nn.Dropout, 1.0)
    add(normal(4, 6), nn.AlphaDropout, 0.3)
    add(images(2), nn.FeatureAlphaDropout, 0.3)
    add(images(1), nn.Dropout1d, 0.3)
    add(images(2), nn.Dropout2d, 0.3)
    add(images(3), nn.Dropout3d, 0.3)
