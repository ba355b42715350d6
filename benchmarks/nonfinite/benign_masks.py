"""Harmless programs: masks and attention, initial values, padding, memory that is not yet written."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.nonfinite.fault import Benign, Step, harmless, trained

BENIGN: list[Benign] = []
benign = harmless(BENIGN)
NAN, INF = float("nan"), float("inf")


@benign("a causal mask of -inf before a softmax")
def causal_mask() -> Step:
    q, k, v = (nn.Linear(4, 4) for _ in range(3))
    x, future = torch.randn(2, 5, 4), torch.ones(5, 5).triu(1).bool()

    def loss() -> Tensor:
        scores = (q(x) @ k(x).mT).masked_fill(future, -INF)
        return (scores.softmax(-1) @ v(x)).square().mean()

    return trained(loss, [*q.parameters(), *k.parameters(), *v.parameters()])


@benign("a floating-point mask of -inf added to scores")
def additive_mask() -> Step:
    weight = torch.randn(4, 5, requires_grad=True)
    x, mask = torch.randn(5, 4), torch.full((5, 5), -INF).triu(1)

    def loss() -> Tensor:
        scores = x @ weight + mask
        return F.softmax(scores, -1).square().sum()

    return trained(loss, [weight])


@benign("scaled_dot_product_attention with a Boolean mask")
def fused_boolean_mask() -> Step:
    model = nn.Linear(8, 24)
    x, keep = torch.randn(2, 4, 8), torch.ones(4, 4).tril().bool()

    def loss() -> Tensor:
        q, k, v = model(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep).square().mean()

    return trained(loss, model.parameters())


@benign("scaled_dot_product_attention with a mask of -inf")
def fused_additive_mask() -> Step:
    model = nn.Linear(8, 24)
    x = torch.randn(2, 2, 4, 8)
    mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -INF)

    def loss() -> Tensor:
        q, k, v = model(x).chunk(3, -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        causal = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return (out + causal).square().mean()

    return trained(loss, model.parameters())


@benign("nn.MultiheadAttention with padding and a causal mask")
def multihead_masks() -> Step:
    attention, head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 1)
    x, padding = torch.randn(2, 4, 8), torch.tensor([[False, False, True, True], [False, False, False, False]])
    causal = torch.ones(4, 4).triu(1).bool()

    def loss() -> Tensor:
        h, _ = attention(x, x, x, key_padding_mask=padding, attn_mask=causal)
        return head(h).square().mean()

    return trained(loss, [*attention.parameters(), *head.parameters()])


@benign("a mask of the smallest finite number, added twice: it overflows to -inf on the way")
def smallest_number_mask() -> Step:
    weight = torch.randn(4, 4, requires_grad=True)
    x, lowest = torch.randn(4, 4), torch.finfo(torch.float32).min
    causal = torch.full((4, 4), lowest).triu(1)
    padding = torch.tensor([0.0, 0.0, 0.0, lowest])

    def loss() -> Tensor:
        scores = x @ weight + causal + padding
        return scores.softmax(-1).square().sum()

    return trained(loss, [weight])


@benign("nn.TransformerEncoder in training with a padding mask")
def encoder_with_padding() -> Step:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    x, padding = torch.randn(3, 5, 8), torch.arange(5).expand(3, 5) >= torch.tensor([[5], [3], [1]])

    def loss() -> Tensor:
        out = net[0](x, src_key_padding_mask=padding)
        return out[~padding].square().mean()

    return trained(loss, net.parameters())


@benign("sampling from the top k: the others get -inf")
def top_k_sampling() -> Step:
    model = nn.Linear(4, 8)
    x = torch.randn(3, 4)

    def step() -> Tensor:
        with torch.no_grad():
            logits = model(x)
            least = logits.topk(3).values[:, -1:]
            p = torch.where(logits < least, torch.tensor(-INF), logits).softmax(-1)
            sampled = torch.multinomial(p, 1)[:, 0]
        loss = F.cross_entropy(model(x), sampled)
        loss.backward()
        return loss

    return step


@benign("top-k over scores of which some are -inf; only finite ones are taken")
def top_of_masked() -> Step:
    model = nn.Linear(4, 6)
    x, banned = torch.randn(3, 4), torch.tensor([1, 0, 0, 1, 0, 0]).bool()

    def loss() -> Tensor:
        scores = model(x).masked_fill(banned, -INF)
        best, _ = scores.topk(2, -1)
        return best.square().mean()

    return trained(loss, model.parameters())


@benign("a minimum that begins at infinity")
def running_minimum() -> Step:
    model, x = nn.Linear(3, 1), torch.randn(5, 3)

    def loss() -> Tensor:
        least = torch.tensor(INF)
        for row in x:
            least = torch.minimum(least, model(row).square().sum())
        return least

    return trained(loss, model.parameters())


@benign("an observer whose range is (inf, -inf) before its first batch")
def range_observer() -> Step:
    class Observer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("low", torch.tensor(INF))
            self.register_buffer("high", torch.tensor(-INF))

        def forward(self, x: Tensor) -> Tensor:
            self.low.copy_(torch.minimum(self.low, x.detach().amin()))
            self.high.copy_(torch.maximum(self.high, x.detach().amax()))
            return x

    net = nn.Sequential(nn.Linear(3, 2), Observer(), nn.Tanh())
    x = torch.randn(4, 3)
    return trained(lambda: net(x).square().mean(), net.parameters())


@benign("an observer that sees no batch: its range stays (inf, -inf)")
def idle_observer() -> Step:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.register_buffer("low", torch.full((2,), INF))
            self.register_buffer("high", torch.full((2,), -INF))

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x)
            if not self.training:
                self.low.copy_(torch.minimum(self.low, h.amin(0)))
            return torch.clamp(h, -self.low, self.low)

    net, x = Net(), torch.randn(4, 3)
    return trained(lambda: net(x).square().mean(), net.parameters())


@benign("torch.empty, then copy_")
def empty_then_copied() -> Step:
    model, batch = nn.Linear(64, 4), torch.randn(32, 64)

    def step() -> Tensor:
        pinned = torch.empty(32, 64).fill_(NAN)
        pinned = torch.empty_like(pinned)
        pinned.copy_(batch)
        loss = model(pinned).square().mean()
        loss.backward()
        return loss

    return step


@benign("an uninitialized workspace as out= of a product")
def workspace() -> Step:
    model, x = nn.Linear(4, 2), torch.randn(8, 4)
    scratch, basis = torch.empty(8, 4).fill_(NAN), torch.randn(4, 4)

    def loss() -> Tensor:
        torch.mm(x, basis, out=scratch)
        return model(scratch).square().mean()

    return trained(loss, model.parameters())


@benign("padding of NaN cut away by lengths")
def padding_cut_away() -> Step:
    model = nn.Linear(3, 1)
    x, lengths = torch.randn(3, 5, 3), [5, 2, 3]
    for row, n in zip(x, lengths, strict=True):
        row[n:] = NAN

    def loss() -> Tensor:
        return torch.stack([model(row[:n]).square().mean() for row, n in zip(x, lengths, strict=True)]).sum()

    return trained(loss, model.parameters())


@benign("labels of NaN left out by a mask")
def missing_labels() -> Step:
    model = nn.Linear(3, 2)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    y[1, 0], y[3, 1] = NAN, NAN

    def loss() -> Tensor:
        known = ~torch.isnan(y)
        return (model(x)[known] - y[known]).square().mean()

    return trained(loss, model.parameters())


@benign("missing features filled with the mean of the others")
def missing_features() -> Step:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    x = torch.randn(6, 3)
    x[0, 1], x[4, 2] = NAN, NAN

    def loss() -> Tensor:
        filled = torch.where(x.isnan(), x.nanmean(0, keepdim=True), x)
        return net(filled).square().mean()

    return trained(loss, net.parameters())


@benign("nan_to_num of the data before the first layer")
def cleaned_data() -> Step:
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    x[0, 0], x[1, 1], x[2, 2] = NAN, INF, -INF

    def step() -> Tensor:
        loss = model(torch.nan_to_num(x, nan=0.0, posinf=1.0, neginf=-1.0)).square().mean()
        loss.backward()
        return loss

    return step


@benign("nanmedian, nansum and nanquantile of data with NaN")
def robust_statistics() -> Step:
    model, x = nn.Linear(3, 1), torch.randn(8, 3)
    x[3], x[5, 0] = NAN, NAN

    def loss() -> Tensor:
        center = x.nanmedian(0).values
        spread = x.nanquantile(0.75, 0) - x.nanquantile(0.25, 0)
        z = ((x - center) / spread).nan_to_num(0.0)
        return model(z).square().mean() + x.nansum() * 0

    return trained(loss, model.parameters())


@benign("the median of data with an infinite outlier")
def median_with_outlier() -> Step:
    scale = nn.Parameter(torch.ones(()))
    x = torch.tensor([1.0, 2.0, INF, 3.0, -INF, 2.5])

    def loss() -> Tensor:
        return (scale * x.median() - 1).square()

    return trained(loss, [scale])
