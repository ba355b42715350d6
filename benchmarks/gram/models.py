"""Models of about ten million parameters, and images for them."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

SIDE, CLASSES = 32, 10


class Block(nn.Module):
    """Two convolutions around a shortcut (He et al. 2016), with group instead of batch normalization."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(8, outputs), nn.GroupNorm(8, outputs)])
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        inner = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(inner)) + self.shortcut(x))


def resnet18() -> nn.Module:
    """ResNet-18 with its usual stem (stride 2, then pooling), which takes images of 32 x 32 pixels down to one position."""
    widths, layers, inputs = (64, 128, 256, 512), [], 64
    for number, width in enumerate(widths):
        for block in range(2):
            layers.append(Block(inputs, width, 2 if number and not block else 1))
            inputs = width
    stem = [nn.Conv2d(1, 64, 7, 2, 3, bias=False), nn.GroupNorm(8, 64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES))


def mlp() -> nn.Module:
    """Three hidden layers of 2048."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (SIDE * SIDE, 2048, 2048):
        layers += [nn.Linear(inputs, 2048), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(2048, CLASSES))


MODELS = {"resnet18": resnet18, "mlp": mlp}


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Handwritten digits, scaled up to 32 x 32, each copy shifted by up to three pixels, with noise: images and labels."""
    data = load_digits()
    pixels = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, len(pixels), (count,), generator=generator)
    large = nn.functional.interpolate(pixels[chosen], size=(SIDE, SIDE), mode="bilinear")
    shifts = torch.randint(-3, 4, (count, 2), generator=generator).tolist()
    moved = torch.stack([image.roll((down, right), (1, 2)) for image, (down, right) in zip(large, shifts, strict=True)])
    return moved + 0.05 * torch.randn(moved.shape, generator=generator), labels[chosen]
