"""A model with a loss on one batch: what every library is given."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

BLOCK = 16  # vectors of a block product
CLASSES = 10


@dataclass(frozen=True)
class Problem:
    """A model with a mean loss on one batch."""

    model: nn.Module
    loss: nn.Module
    inputs: Tensor  # [N, ...]
    targets: Tensor  # [N, ...]
    vectors: dict[str, Tensor] = field(default_factory=dict)  # name -> [BLOCK, *shape], in the order of the parameters
    max_norm: float = math.inf  # to which the gradients of a clipped sum are clipped

    @property
    def vector(self) -> dict[str, Tensor]:
        """The first vector of the block: name -> [*shape]."""
        return {name: block[0] for name, block in self.vectors.items()}

    @property
    def params(self) -> dict[str, nn.Parameter]:
        """The parameters by name."""
        return dict(self.model.named_parameters())

    @property
    def sum_loss(self) -> nn.Module:
        """The loss without its mean: of one sample, it is that sample's unreduced contribution."""
        return type(self.loss)(reduction="sum")

    def sample_losses(self, output: Tensor) -> Tensor:
        """The unreduced contributions of all samples: [N]."""
        return type(self.loss)(reduction="none")(output, self.targets).reshape(len(output), -1).sum(1)

    def head(self, count: int) -> Problem:
        """The same problem on the first `count` samples."""
        return replace(self, inputs=self.inputs[:count], targets=self.targets[:count])

    def double(self) -> Problem:
        """The same problem in float64, on a model of its own."""
        return replace(
            self,
            model=copy.deepcopy(self.model).double(),
            inputs=_double(self.inputs),
            targets=_double(self.targets),
            vectors={name: block.double() for name, block in self.vectors.items()},
        )

    def gradient(self) -> tuple[Tensor, ...]:
        """The unit of cost: one forward and one backward pass of the whole batch."""
        return torch.autograd.grad(self.loss(self.model(self.inputs), self.targets), list(self.model.parameters()))


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
