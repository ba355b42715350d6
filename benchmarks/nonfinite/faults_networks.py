"""Faults in networks: normalization, attention, recurrence, convolution, re-used and nested modules, states."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.nonfinite.fault import Fault, Step, planted, trained

FAULTS: list[Fault] = []
fault = planted(FAULTS)


@fault("batch normalization by hand of a channel that no sample turns on", "forward|backward", "div")
def batch_norm_without_epsilon() -> Step:
    class Norm(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

        def forward(self, x: Tensor) -> Tensor:
            mean, variance = x.mean(0), x.var(0, unbiased=False)
            normal = (x - mean) / variance.sqrt()  # FAULT
            return normal * self.scale + self.shift

    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Norm(4), nn.Linear(4, 1)), torch.randn(6, 3)
    nn.init.constant_(net[0].bias, -40.0)
    return trained(lambda: net(x).square().mean(), net.parameters())


@fault("layer normalization of equal features, eps=0", "forward|backward", "layer_norm")
def layer_norm_without_epsilon() -> Step:
    weight = torch.zeros(3, 4, requires_grad=True)
    x = torch.randn(2, 3)

    def loss() -> Tensor:
        h = x @ weight
        h = F.layer_norm(h, (4,), eps=0.0)  # FAULT
        return (h * torch.arange(4.0)).sum()

    return trained(loss, [weight])


@fault("batch normalization in eval mode with a negative running variance", "forward", "batch_norm")
def negative_running_variance() -> Step:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 1))
    net[1].running_var[1] = -0.25
    net[1].eval()
    image = torch.randn(2, 1, 4, 4)

    def loss() -> Tensor:
        h = net[0](image)
        h = net[1](h)  # FAULT
        return net[3](net[2](h)).mean()

    return trained(loss, net.parameters())


@fault("a softmax over a row in which everything is masked", "forward", "softmax")
def attention_over_nothing() -> Step:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            scores = self.q(x) @ self.k(x).mT / 2
            scores = scores.masked_fill(padding[:, None], float("-inf"))
            attention = torch.softmax(scores, -1)  # FAULT
            return attention @ self.v(x)

    net, x = Attention(), torch.randn(2, 3, 4)
    padding = torch.tensor([[False, False, True], [True, True, True]])
    return trained(lambda: net(x, padding).square().mean(), net.parameters())


@fault("nn.MultiheadAttention: every key of a sample is padding", "forward", "softmax|attention")
def multihead_over_nothing() -> Step:
    attention, head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1)
    x, padding = torch.randn(2, 3, 4), torch.tensor([[False, True, True], [True, True, True]])

    def loss() -> Tensor:
        h, _ = attention(x, x, x, key_padding_mask=padding)  # FAULT
        return head(h).square().mean()

    return trained(loss, [*attention.parameters(), *head.parameters()])


@fault("queries times keys leave float16", "forward", "matmul|mm|bmm")
def half_scores_overflow() -> Step:
    q = nn.Parameter(torch.full((2, 3, 64), 40.0, dtype=torch.float16))
    k = torch.full((2, 3, 64), 30.0, dtype=torch.float16)

    def loss() -> Tensor:
        scores = q @ k.mT  # FAULT
        return (scores / 8).softmax(-1).float().square().sum()

    return trained(loss, [q])


@fault("a recurrent state that grows at every step", "forward", "mm|mv|matmul|linear|add")
def recurrence_grows() -> Step:
    weight = nn.Parameter(torch.eye(4) * 8)
    x = torch.rand(60, 4)

    def loss() -> Tensor:
        h = torch.ones(4)
        for t in range(len(x)):
            h = torch.relu(weight @ h + x[t])  # FAULT
        return h.mean()

    return trained(loss, [weight])


@fault("nn.RNN with relu grows over a long sequence", "forward", "rnn|linear|mm|relu|add")
def library_recurrence_grows() -> Step:
    rnn, head = nn.RNN(3, 5, nonlinearity="relu", batch_first=True), nn.Linear(5, 1)
    nn.init.constant_(rnn.weight_hh_l0, 3.0)
    x = torch.rand(2, 50, 3)

    def loss() -> Tensor:
        out, _ = rnn(x)  # FAULT
        return head(out[:, -1]).mean()

    return trained(loss, [*rnn.parameters(), *head.parameters()])


@fault("the same activation twice; only its second use has a zero", "forward", "log")
def activation_used_twice() -> Step:
    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(x)  # FAULT

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.one, self.two = Log(), nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.act(self.one(x).abs() + 1)
            h = self.act(torch.relu(h - 30))
            return self.two(h)

    net, x = Net(), torch.randn(2, 3)
    return trained(lambda: net(x).mean(), net.parameters())


@fault("a convolution in float16 whose sums are too large", "forward", "conv")
def half_convolution() -> Step:
    kernel = nn.Parameter(torch.full((2, 8, 3, 3), 30.0, dtype=torch.float16))
    image = torch.full((1, 8, 5, 5), 40.0, dtype=torch.float16)

    def loss() -> Tensor:
        features = F.conv2d(image, kernel)  # FAULT
        return F.adaptive_avg_pool2d(features.float(), 1).tanh().sum() + features.float().mean()

    return trained(loss, [kernel])


@fault("the exponential of a large log-variance", "forward", "exp")
def variational_deviation() -> Step:
    encoder, decoder = nn.Linear(4, 4), nn.Linear(2, 4)
    x = torch.randn(3, 4)
    x[1, 2] = 9e4

    def loss() -> Tensor:
        mean, log_variance = encoder(x).chunk(2, -1)
        std = torch.exp(0.5 * log_variance.abs())  # FAULT
        z = mean + std * torch.randn_like(std)
        return F.mse_loss(decoder(z), x)

    return trained(loss, [*encoder.parameters(), *decoder.parameters()])


@fault("weight normalization of a direction that is zero", "forward", "div|norm")
def weight_norm_of_zero() -> Step:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[1] = 0
    layer = nn.utils.parametrizations.weight_norm(layer)
    x = torch.randn(4, 3)

    def loss() -> Tensor:
        y = layer(x)  # FAULT
        return y.square().mean()

    return trained(loss, layer.parameters())


@fault("gates of chosen experts renormalized, all of them zero", "forward", "div")
def gates_of_zero() -> Step:
    gate, experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    nn.init.constant_(gate.bias, -30.0)
    x = torch.randn(5, 4)

    def mixture(x: Tensor) -> Tensor:
        weight, chosen = torch.relu(gate(x)).topk(2, -1)
        weight = weight / weight.sum(-1, keepdim=True)  # FAULT
        every = torch.stack([expert(x) for expert in experts], 1)
        return (weight[..., None] * every.gather(1, chosen[..., None].expand(-1, -1, 4))).sum(1)

    return trained(lambda: mixture(x).square().mean(), [*gate.parameters(), *experts.parameters()])


@fault("nn.TransformerEncoderLayer in float16: its hidden layer overflows", "forward", "linear|mm|addmm|relu")
def half_transformer_overflows() -> Step:
    layer, head = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).half(), nn.Linear(8, 1).half()
    nn.init.constant_(layer.linear1.bias, 6e4)
    nn.init.constant_(layer.linear2.weight, 1.0)
    x = torch.randn(2, 3, 8).half()

    def loss() -> Tensor:
        h = layer(x)  # FAULT
        return head(h).float().square().mean()

    return trained(loss, [*layer.parameters(), *head.parameters()])


@fault("learned coordinates of grid_sample divide by a size of one less one", "forward", "div")
def grid_of_one_pixel() -> Step:
    shift = nn.Parameter(torch.zeros(1, 1, 1, 2))
    image = torch.randn(1, 2, 1, 5)

    def grid(height: int, width: int) -> Tensor:
        rows = torch.arange(height, dtype=torch.float32)[:, None].expand(height, width)
        columns = torch.arange(width, dtype=torch.float32).expand(height, width)
        size = torch.tensor([width - 1.0, height - 1.0])
        return 2 * torch.stack([columns, rows], -1)[None] / size - 1  # FAULT

    def loss() -> Tensor:
        return F.grid_sample(image, grid(1, 5) + shift, align_corners=True).sum() + (grid(1, 5) + shift).sum()

    return trained(loss, [shift])
