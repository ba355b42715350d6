"""Harmless programs on roads where values are hard to follow: through Python and NumPy, other threads, several passes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.nonfinite.fault import Benign, Step, harmless, trained

BENIGN: list[Benign] = []
benign = harmless(BENIGN)
NAN, INF = float("nan"), float("inf")


@benign("the norm of the gradients, measured by clipping to infinity")
def clipped_to_infinity() -> Step:
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), INF)
        optimizer.step()
        return float(norm)

    return step


@benign("samples with NaN left out while they are collated")
def left_out_by_collate() -> Step:
    samples = [torch.randn(3) for _ in range(6)]
    samples[1][0], samples[4][2] = NAN, INF
    model = nn.Linear(3, 1)

    def collate(batch: list[Tensor]) -> Tensor:
        return torch.stack([row for row in batch if row.isfinite().all()])

    loader = DataLoader(samples, batch_size=3, collate_fn=collate)

    def step() -> None:
        for x in loader:
            model(x).square().mean().backward()

    return step


@benign("features in inference mode with a mask of -inf")
def inference_with_mask() -> Step:
    backbone, head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1)
    x, mask = torch.randn(2, 3, 4), torch.full((3, 3), -INF).triu(1)

    def loss() -> Tensor:
        with torch.inference_mode():
            h, _ = backbone(x, x, x, attn_mask=mask)
        return head(h.clone()).square().mean()

    return trained(loss, head.parameters())


@benign("an infinite barrier, measured first and left out")
def barrier_left_out() -> Step:
    x = nn.Parameter(torch.tensor([0.5, 2.0]))

    def loss() -> Tensor:
        with torch.no_grad():
            barrier = -torch.log(1 - x).sum()
        fit = (x - 1).square().sum()
        return fit if not barrier.isfinite() else fit + barrier

    return trained(loss, [x])


@benign("accumulated batches, one of them empty: its mean is NaN and not added")
def empty_batch_not_added() -> Step:
    model = nn.Linear(3, 2)
    batches = [(torch.randn(n, 3), torch.zeros(n, dtype=torch.long)) for n in (4, 0, 2)]

    def step() -> Tensor:
        total = torch.zeros(())
        for x, y in batches:
            part = F.cross_entropy(model(x), y)
            total = total + torch.where(part.isnan(), torch.zeros_like(part), part) if len(x) else total
        total.backward()
        return total

    return step
