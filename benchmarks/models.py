"""What is measured on: four models with their data, and two small functions. Plain torch, the same for all.

Weights and data come from a fixed seed, in float32; `Problem.double` is the same in float64, for references.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

BLOCK = 16  # vectors of a block product
CLASSES = 10


@dataclass(frozen=True)
class Problem:
    """A model with a mean cross entropy on one batch."""

    model: nn.Module
    loss: nn.Module
    inputs: Tensor  # [N, ...]
    targets: Tensor  # [N]
    vectors: dict[str, Tensor]  # name -> [BLOCK, *shape], in the order of the parameters

    @property
    def vector(self) -> dict[str, Tensor]:
        """The first vector of the block: name -> [*shape]."""
        return {name: block[0] for name, block in self.vectors.items()}

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """The parameters by name."""
        return dict(self.model.named_parameters())

    def double(self) -> Problem:
        """The same problem in float64, on a model of its own."""
        inputs = self.inputs.double() if self.inputs.is_floating_point() else self.inputs
        vectors = {name: block.double() for name, block in self.vectors.items()}
        return replace(self, model=copy.deepcopy(self.model).double(), inputs=inputs, vectors=vectors)

    def gradient(self) -> tuple[Tensor, ...]:
        """The unit of cost: one forward and one backward pass of the whole batch."""
        return torch.autograd.grad(self.loss(self.model(self.inputs), self.targets), list(self.model.parameters()))


@dataclass(frozen=True)
class SmallFunctions:
    """Two functions of one vector: ``f: R^n -> R^m`` and ``g: R^n -> R``."""

    f: Callable[[Tensor], Tensor]
    g: Callable[[Tensor], Tensor]
    x: Tensor  # [n]

    def double(self) -> SmallFunctions:
        """The same functions at the same point in float64 (their constants follow the dtype of x)."""
        return replace(self, x=self.x.double())

    def gradient_of(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The unit of cost: one forward and one backward pass (of the sum of the outputs)."""
        x = self.x.detach().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)[0]


class SelfAttention(nn.Module):
    """Softmax attention written out, since fused kernels have neither forward mode nor a double backward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]."""
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Token and position embeddings, one pre-norm block, a classifier on the mean over positions."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.norm1, self.attention = nn.LayerNorm(width), SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm3, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, T] of token numbers -> [N, CLASSES]."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).repeat(len(tokens), 1)
        x = self.token(tokens) + self.position(positions)
        x = x + self.attention(self.norm1(x))
        x = x + self.feed_forward(self.norm2(x))
        return self.head(self.norm3(x).mean(1))


def _mlp() -> tuple[nn.Module, Tensor]:
    layers = [nn.Linear(100, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, CLASSES)]
    return nn.Sequential(*layers), torch.randn(256, 100)


def _lenet() -> tuple[nn.Module, Tensor]:
    features = [
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
    ]
    head = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES)]
    return nn.Sequential(*features, *head), torch.randn(256, 1, 28, 28)


def _3c3d() -> tuple[nn.Module, Tensor]:
    features = [
        *(nn.Conv2d(3, 64, 5), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)),
        *(nn.Conv2d(64, 96, 3), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)),
        *(nn.Conv2d(96, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), nn.Flatten()),
    ]
    head = [nn.Linear(1152, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, CLASSES)]
    return nn.Sequential(*features, *head), torch.randn(64, 3, 32, 32)


def _transformer() -> tuple[nn.Module, Tensor]:
    return TransformerBlock(vocabulary=256, length=32, width=64, heads=4), torch.randint(0, 256, (64, 32))


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": _mlp,
    "lenet": _lenet,
    "transformer": _transformer,
    "3c3d": _3c3d,
}


def make_problem(name: str) -> Problem:
    """The model called `name` with its batch and vectors, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model, inputs = MODELS[name]()
        targets = torch.randint(0, CLASSES, (len(inputs),))
        vectors = {n: torch.randn(BLOCK, *p.shape) for n, p in model.named_parameters()}
    return Problem(model, nn.CrossEntropyLoss(), inputs, targets, vectors)


def make_functions() -> SmallFunctions:
    """``f: R^100 -> R^60``, ``g: R^100 -> R``, both with a dense derivative, at a fixed point."""
    generator = torch.Generator().manual_seed(20)
    A, B = (torch.randn(60, 100, generator=generator, dtype=torch.float64) / 10 for _ in range(2))
    constants = {dtype: (A.to(dtype), B.to(dtype)) for dtype in (torch.float32, torch.float64)}

    def f(x: Tensor) -> Tensor:
        A, B = constants[x.dtype]
        return torch.tanh(A @ x) * torch.sin(B @ x.square())

    def g(x: Tensor) -> Tensor:
        A, _ = constants[x.dtype]
        return torch.logsumexp(A @ x, 0) + torch.cos(x[1:] * x[:-1]).sum()

    return SmallFunctions(f, g, torch.randn(100, generator=generator))
