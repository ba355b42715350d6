"""Faults that nobody read who wrote what is measured: networks and machinery."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.nonfinite.fault import Fault, Step, planted, trained

FAULTS: list[Fault] = []
fault = planted(FAULTS)


@fault("root-mean-square normalization by hand, of a padded position", "forward", "div|rsqrt")
def rms_norm_by_hand() -> Step:
    class RMSNorm(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(size))

        def forward(self, x: Tensor) -> Tensor:
            power = x.square().mean(-1, keepdim=True)
            return x * power.rsqrt() * self.scale  # FAULT

    table = nn.Embedding(10, 4, padding_idx=0)
    norm, head = RMSNorm(4), nn.Linear(4, 2)
    tokens = torch.tensor([[3, 5, 0, 0], [1, 2, 9, 4]])

    def loss() -> Tensor:
        return head(norm(table(tokens))).square().mean()

    return trained(loss, [*table.parameters(), *norm.parameters(), *head.parameters()])


@fault("group normalization of a constant image, eps=0", "forward|backward", "group_norm")
def group_norm_without_epsilon() -> Step:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.GroupNorm(2, 4, eps=0.0), nn.ReLU())
    nn.init.constant_(net[0].weight, 0.5)
    nn.init.constant_(net[0].bias, 0.0)
    image = torch.ones(1, 1, 4, 4)

    def loss() -> Tensor:
        features = net(image)  # FAULT
        return features.square().mean()

    return trained(loss, net.parameters())


@fault("a mask of -1e9 in float16 is minus infinity; a row of it", "forward", "softmax|mul")
def half_mask_overflows() -> Step:
    weight = torch.randn(4, 4, dtype=torch.float16, requires_grad=True)
    x, drop = torch.randn(3, 4, dtype=torch.float16), torch.zeros(3, 4, dtype=torch.float16)
    drop[1] = 1

    def loss() -> Tensor:
        scores = x @ weight + drop * -1e9  # FAULT
        attention = scores.softmax(-1)  # ALSO
        return attention.square().sum().float()

    return trained(loss, [weight])


@fault("one block used many times doubles its input each time", "forward", "add|linear|mm")
def block_used_many_times() -> Step:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 1)
            nn.init.constant_(self.block.weight, 20.0)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(40):
                x = x + self.block(x)  # FAULT
            return self.head(x.tanh())

    net, x = Deep(), torch.rand(2, 4)
    return trained(lambda: net(x).mean(), net.parameters())


@fault("standardized filters, one of them constant", "forward", "div")
def weight_standardization() -> Step:
    class Standardized(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            mean = self.weight.mean((1, 2, 3), keepdim=True)
            std = self.weight.std((1, 2, 3), keepdim=True)
            weight = (self.weight - mean) / std  # FAULT
            return F.conv2d(input, weight, self.bias, padding=1)

    net = nn.Sequential(Standardized(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    nn.init.constant_(net[0].weight[1], 0.0)
    image = torch.randn(2, 2, 4, 4)
    return trained(lambda: net(image).square().mean(), net.parameters())


@fault("an embedding row that a damaged checkpoint filled with NaN", "data|forward", "input|embedding|index")
def damaged_embedding() -> Step:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(12, 4), nn.Linear(4, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            h = self.table(tokens)  # FAULT
            return self.head(h.mean(1))

    model = Model()
    with torch.no_grad():
        model.table.weight[7, 2] = float("nan")
    tokens, y = torch.tensor([[1, 4], [7, 2]]), torch.tensor([0, 2])
    return trained(lambda: F.cross_entropy(model(tokens), y), model.parameters())


@fault("a running statistic takes in the mean of nothing; the loss stays finite", "forward", "mean")
def statistic_of_nothing() -> Step:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.register_buffer("level", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x)
            with torch.no_grad():
                active = h[h.sum(1) > 1e3]
                mean = active.mean(0)  # FAULT
                self.level.mul_(0.9).add_(0.1 * mean)
            return h

    net, x = Counted(), torch.randn(4, 3)
    return trained(lambda: net(x).square().mean(), net.parameters())


@fault("contrastive loss: the diagonal is set to -inf, then asked for", "forward", "log_softmax|gather|index|neg|diagonal|fill")
def contrastive_diagonal() -> Step:
    encoder = nn.Linear(5, 4)
    x = torch.randn(3, 5)

    def loss() -> Tensor:
        z = F.normalize(encoder(x), dim=1)
        similarity = z @ z.T / 0.1
        similarity = similarity.masked_fill(torch.eye(3, dtype=torch.bool), float("-inf"))  # ALSO
        log_p = similarity.log_softmax(-1)
        return -log_p.diagonal().mean()  # FAULT

    return trained(loss, encoder.parameters())


@fault("a division in place", "forward", "div")
def division_in_place() -> Step:
    weight = torch.randn(3, 3, requires_grad=True)
    x = torch.zeros(2, 3)
    x[0] = 1

    def loss() -> Tensor:
        y = (x @ weight).abs()
        total = y.sum(1, keepdim=True)
        y.div_(total)  # FAULT
        return y.square().sum()

    return trained(loss, [weight])


@fault("a quotient written into a given tensor", "forward", "div")
def quotient_into_out() -> Step:
    model = nn.Linear(3, 1)
    x, scaled = torch.randn(4, 3), torch.empty(4, 3)
    x[:, 1] = 2.0

    def loss() -> Tensor:
        centered = x - x.mean(0)
        torch.div(centered, x.std(0), out=scaled)  # FAULT
        return model(scaled).square().mean()

    return trained(loss, model.parameters())


@fault("forward of a custom Function divides by a scale of zero", "forward", "div")
def custom_forward() -> Step:
    class FakeQuantize(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, levels: int) -> Tensor:
            scale = x.abs().max() / levels
            return torch.round(x / scale) * scale  # FAULT

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
            return grad, None

    weight = nn.Parameter(torch.zeros(3, 2))
    x = torch.randn(4, 3)
    return trained(lambda: (x @ FakeQuantize.apply(weight, 7) - 1).square().mean(), [weight])


@fault("inside a checkpoint, forward", "forward", "log")
def checkpointed_forward() -> Step:
    first, second = nn.Linear(3, 4), nn.Linear(4, 1)
    x = torch.randn(2, 3)

    def middle(h: Tensor) -> Tensor:
        h = torch.relu(h - 20)
        return torch.log(h)  # FAULT

    def loss() -> Tensor:
        h = checkpoint(middle, first(x), use_reentrant=False)
        return second(h).mean()

    return trained(loss, [*first.parameters(), *second.parameters()])


@fault("inside a checkpoint, only in backward", "backward", "sqrt")
def checkpointed_backward() -> Step:
    first, second = nn.Linear(3, 4), nn.Linear(4, 1)
    x = torch.randn(2, 3)

    def middle(h: Tensor) -> Tensor:
        h = h - h.detach()
        root = h.sqrt()  # FAULT
        return root + 1

    def loss() -> Tensor:
        h = checkpoint(middle, first(x), use_reentrant=False)
        return second(h).mean()

    return trained(loss, [*first.parameters(), *second.parameters()])


@fault("the gradient by torch.func of a norm at zero", "backward", "sqrt")
def func_grad() -> Step:
    weight = {"w": torch.zeros(3), "b": torch.ones(1)}

    def energy(params: dict[str, Tensor]) -> Tensor:
        squares = params["w"].square().sum() * params["b"].square().sum()
        return squares.sqrt()  # FAULT

    def step() -> dict[str, Tensor]:
        grads = torch.func.grad(energy)(weight)
        for name in weight:
            weight[name] = weight[name] - 0.1 * grads[name]
        return weight

    return step


@fault("per-sample gradients, vmap over grad, one sample at a kink", "backward", "sqrt|pow")
def per_sample_gradients() -> Step:
    weight = torch.randn(3)
    x = torch.randn(4, 3)
    x[2] = 0

    def sample_loss(w: Tensor, row: Tensor) -> Tensor:
        hidden = (w * row).sum()
        return (hidden * hidden).sqrt()  # FAULT

    def step() -> Tensor:
        grads = torch.vmap(torch.func.grad(sample_loss), (None, 0))(weight, x)
        weight.sub_(0.1 * grads.mean(0))
        return grads

    return step


@fault("a sparse adjacency normalized by a degree of zero", "forward", "pow|rsqrt|div")
def sparse_degree_of_zero() -> Step:
    edges = torch.tensor([[0, 1, 1, 3], [1, 0, 3, 1]])
    weight, x = nn.Parameter(torch.randn(3, 2)), torch.randn(4, 3)

    def loss() -> Tensor:
        degree = torch.zeros(4).index_add(0, edges[0], torch.ones(4))
        inverse = degree.pow(-0.5)  # FAULT
        values = inverse[edges[0]] * inverse[edges[1]]
        adjacency = torch.sparse_coo_tensor(edges, values, (4, 4))
        own = inverse[:, None] * x
        return ((torch.sparse.mm(adjacency, x) + own) @ weight).square().mean()

    return trained(loss, [weight])
