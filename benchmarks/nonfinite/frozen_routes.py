"""Faults and harmless programs that nobody read who wrote what is measured: roads that are hard to follow."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.nonfinite.fault import Benign, Fault, Step, harmless, planted, trained

FAULTS: list[Fault] = []
fault = planted(FAULTS)
BENIGN: list[Benign] = []
benign = harmless(BENIGN)
NAN, INF = float("nan"), float("inf")


@fault("a quotient of zeros becomes a Python number, and a factor of the loss", "forward|data", "div")
def through_a_python_number() -> Step:
    model = nn.Linear(3, 1)
    x, weight = torch.randn(4, 3), torch.zeros(4)

    def loss() -> Tensor:
        error = model(x)[:, 0].square()
        scale = (weight.sum() / weight.count_nonzero()).item()  # FAULT
        shifted = error + 1
        return (shifted * scale).mean()

    return trained(loss, model.parameters())


@fault("advantages standardized in NumPy, all of them equal", "data|forward", "input|mul|from_numpy|div")
def through_numpy() -> Step:
    policy = nn.Linear(3, 2)
    state, rewards = torch.randn(4, 3), torch.ones(4)

    def loss() -> Tensor:
        log_p = policy(state).log_softmax(-1)[:, 0]
        with np.errstate(invalid="ignore"):
            returns = rewards.numpy()
            standard = (returns - returns.mean()) / returns.std()  # FAULT
        advantage = torch.from_numpy(standard)  # ALSO
        return -(log_p * advantage).mean()  # ALSO

    return trained(loss, policy.parameters())


@fault("a batch prepared in another thread", "data|forward", "log|input|linear|mm|addmm")
def prepared_in_a_thread() -> Step:
    model = nn.Linear(2, 1)
    counts = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    pool = ThreadPoolExecutor(1)

    def prepare() -> Tensor:
        return torch.log(counts)  # FAULT

    def step() -> Tensor:
        x = pool.submit(prepare).result()
        y = model(x)  # ALSO
        loss = y.square().mean()
        loss.backward()
        return loss

    return step


@fault("a hidden state carried from piece to piece is normalized by its norm, which is zero at first", "forward", "div")
def carried_state() -> Step:
    cell, head = nn.LSTMCell(3, 4), nn.Linear(4, 1)
    pieces = torch.randn(2, 5, 2, 3)

    def step() -> None:
        h, c = torch.zeros(2, 4), torch.zeros(2, 4)
        for piece in pieces:
            c = c.detach() / c.norm(dim=1, keepdim=True)  # FAULT
            h = h.detach()
            for x in piece:
                h, c = cell(x, (h, c))
            loss = head(h).square().mean()
            loss.backward()

    return step


@fault("a recursion over a tree; a leaf deep down", "forward", "log|div")
def tree_recursion() -> Step:
    join = nn.Linear(4, 2)
    tree = (((0.5, 1.0), 2.0), (1.5, (0.0, 3.0)))

    def encode(node: object) -> Tensor:
        if isinstance(node, tuple):
            return torch.tanh(join(torch.cat([encode(child) for child in node])))
        value = torch.tensor([node, 1.0])
        return torch.log(value)  # FAULT

    return trained(lambda: encode(tree).square().sum() + join.weight.sum(), join.parameters())


@fault("a parametrization takes the logarithm of a weight", "forward", "log")
def parametrized_weight() -> Step:
    class Positive(nn.Module):
        def forward(self, raw: Tensor) -> Tensor:
            return torch.log(torch.relu(raw))  # FAULT

    layer = nn.Linear(3, 2)
    parametrize.register_parametrization(layer, "weight", Positive())
    x = torch.randn(4, 3)
    return trained(lambda: layer(x).tanh().mean() + layer(x).mean(), layer.parameters())


@benign("NaN filled in NumPy before training sees it")
def filled_in_numpy() -> Step:
    model = nn.Linear(3, 1)
    table = np.array([[1.0, np.nan, 2.0], [0.5, 1.0, np.nan]], dtype=np.float32)

    def step() -> Tensor:
        raw = torch.from_numpy(table)
        rows = np.where(np.isnan(table), np.nanmean(table, 0), table)
        loss = model(torch.from_numpy(rows)).square().mean() + raw[:, 0].sum()
        loss.backward()
        return loss

    return step


@benign("padding with NaN in another thread, removed in this one")
def padded_in_a_thread() -> Step:
    model = nn.Linear(2, 1)
    rows = [torch.randn(3, 2), torch.randn(1, 2)]
    pool = ThreadPoolExecutor(1)

    def pad() -> Tensor:
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NAN)

    def loss() -> Tensor:
        x = pool.submit(pad).result()
        valid = ~x.isnan().any(-1)
        return model(x[valid]).square().mean()

    return trained(loss, model.parameters())


@benign("a NaN as a Python number means that there is no measure yet")
def no_measure_yet() -> Step:
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    best = [NAN]

    def step() -> float:
        loss = model(x).square().mean()
        loss.backward()
        before = torch.tensor(best[0])
        if math.isnan(before.item()) or loss < before:
            best[0] = loss.item()
        return best[0]

    return step
