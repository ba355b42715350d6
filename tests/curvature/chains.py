"""Chains of layers, with the shapes of their inputs: what a recursion from layer to layer has to get through."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class LocallyConnected(nn.Module):
    """A convolution with weights of its own at every position (hessian.lua's SpatialConvolutionLocal)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 8, 6)), nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        columns = F.unfold(x, (2, 2))  # [n, 8, 6] for x [n, 2, 3, 4]
        return (columns[:, None] * self.weight).sum(2) + self.bias


class PartialConvolution(nn.Conv2d):
    """A convolution whose planes are connected by a table (hessian.lua's SpatialConvolutionMap)."""

    def forward(self, x: Tensor) -> Tensor:
        table = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=x.dtype)[:, :, None, None]
        return F.conv2d(x, self.weight * table, self.bias, self.stride)


CHAINS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "mlp": (lambda: [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Sigmoid(), nn.Linear(3, 2, bias=False)], (3, 4)),
    "positions": (lambda: [nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)], (2, 5, 4)),
    "functions": (lambda: [nn.Linear(4, 5), Apply(torch.square), Apply(torch.sqrt), nn.Softplus(), nn.Linear(5, 2)], (3, 4)),
    "kinks": (lambda: [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.LeakyReLU(0.1), nn.Hardtanh(), nn.PReLU(5)], (3, 4)),
    "fused": (lambda: [nn.Linear(4, 5), nn.Tanhshrink(), nn.Softsign(), nn.SiLU(), Apply(lambda t: t * t + t)], (3, 4)),
    "convolutions": (lambda: [
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=1, groups=2), nn.ELU(), nn.Conv2d(4, 3, 2, dilation=(1, 2)),
    ], (2, 2, 5, 4)),
    "transposed": (lambda: [
        nn.ConvTranspose2d(2, 4, (3, 2), stride=2, padding=1, output_padding=1, groups=2), nn.Tanh(), nn.Conv2d(4, 2, 3),
    ], (2, 2, 3, 2)),
    "one axis": (lambda: [nn.Conv1d(2, 3, 2), nn.Tanh(), nn.ConvTranspose1d(3, 2, 3, stride=2), nn.AvgPool1d(2)], (3, 2, 5)),
    "three axes": (lambda: [nn.Conv3d(1, 2, 2), nn.Mish(), nn.AvgPool3d(2, stride=1)], (2, 1, 3, 3, 4)),
    "pooling": (lambda: [
        nn.Conv2d(1, 2, 2), nn.MaxPool2d(2, stride=1), nn.AvgPool2d(3, stride=2, padding=1),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 3),
    ], (2, 1, 6, 5)),
    "borders": (lambda: [
        nn.Conv2d(1, 2, 2), nn.AvgPool2d((3, 2), 2, padding=(1, 0), ceil_mode=True, count_include_pad=False),
        nn.Conv2d(2, 1, 1), nn.AvgPool2d(2, 1, divisor_override=3),
    ], (2, 1, 7, 6)),
    "adaptive": (lambda: [nn.Conv2d(1, 2, 2), nn.AdaptiveAvgPool2d((2, 3)), nn.Conv2d(2, 2, 1), nn.AdaptiveMaxPool2d(2),
                          nn.AdaptiveAvgPool2d(1)], (2, 1, 6, 6)),
    "padding": (lambda: [nn.Conv2d(1, 2, 2), nn.ReflectionPad2d(1), nn.Conv2d(2, 1, 2), nn.ReplicationPad2d((1, 0, 2, 0)),
                         nn.ZeroPad2d(1), nn.Upsample(scale_factor=2), nn.Conv2d(1, 4, 1), nn.PixelShuffle(2)], (2, 1, 3, 3)),
    "batch norm": (lambda: [nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 2),
                            nn.BatchNorm2d(2, affine=False)], (2, 1, 4, 4)),
    "locally connected": (lambda: [nn.Conv2d(2, 2, 1), nn.Tanh(), LocallyConnected()], (2, 2, 3, 4)),
    "partial": (lambda: [nn.Conv2d(2, 2, 1), nn.Tanh(), PartialConvolution(2, 3, 2)], (2, 2, 4, 3)),
    "movement": (lambda: [
        nn.Linear(4, 6), Apply(lambda t: t.reshape(-1, 2, 3).mT.flip(1)), Apply(lambda t: torch.cat(t.chunk(2, 2), 1)),
        Apply(lambda t: t.roll(1, 1).mean(2)), Apply(lambda t: t[:, ::2].unsqueeze(1).expand(-1, 2, -1)), nn.Linear(3, 2),
    ], (3, 4)),
}  # fmt: skip
