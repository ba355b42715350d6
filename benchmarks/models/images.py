"""Convolutional networks with their batches: (model, inputs, targets)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from benchmarks.models.problem import CLASSES

Case = tuple[nn.Module, Tensor, Tensor]


def _images(count: int, *shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, *shape), torch.randint(0, CLASSES, (count,))


def lenet() -> Case:
    """LeNet on 1x28x28."""
    features = [
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
    ]
    head = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES)]
    return nn.Sequential(*features, *head), *_images(256, 1, 28, 28)


def three_c_three_d() -> Case:
    """3C3D, the three-convolution network of optimizer benchmarks, on 3x32x32."""
    features = [
        *(nn.Conv2d(3, 64, 5), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)),
        *(nn.Conv2d(64, 96, 3), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)),
        *(nn.Conv2d(96, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), nn.Flatten()),
    ]
    head = [nn.Linear(1152, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, CLASSES)]
    return nn.Sequential(*features, *head), *_images(64, 3, 32, 32)


def depthwise() -> Case:
    """A stem of stride 2, then four depthwise-separable blocks of 128 channels, at 16, 8, 8 and 4 pixels."""

    def block(stride: int) -> list[nn.Module]:
        spatial = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width)
        return [spatial, nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU()]

    width = 128
    blocks = [layer for stride in (1, 2, 1, 2) for layer in block(stride)]
    stem = [nn.Conv2d(3, width, 3, stride=2, padding=1), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]
    return nn.Sequential(*stem, *blocks, *head), *_images(32, 3, 32, 32)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalization, added to the input (or to its 1x1 projection)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        projection = [nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*(projection if stride != 1 or inputs != outputs else []))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        y = silu(self.norm1(self.conv1(x)))
        return silu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18() -> Case:
    """ResNet-18 with the stem of small images, its batch normalization in eval mode, SiLU for ReLU.

    The running statistics are those of the batch itself (one pass with momentum 1), so that activations are of
    order one; scales and shifts are drawn at random. With ReLU, some of the millions of activations are so close
    to its kink that float32 rounding decides their side: two right results then differ by several percent.
    """
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
    stem = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.SiLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES)]
    model = nn.Sequential(*stem, *(ResidualBlock(*width) for width in widths), *head)
    inputs, targets = _images(16, 3, 32, 32)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        for layer in norms:
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(std=0.1)
            layer.momentum = 1.0
        model(inputs)
    return model.eval(), inputs, targets


def conv3d() -> Case:
    """Many small volumes and 33 parameters, one output a sample, with a squared error."""
    layers = [nn.Conv3d(1, 1, 3), nn.Tanh(), nn.AvgPool3d((4, 2, 2)), nn.Flatten(), nn.Linear(4, 1)]
    return nn.Sequential(*layers), torch.randn(1000, 1, 6, 6, 6), torch.randn(1000, 1)
