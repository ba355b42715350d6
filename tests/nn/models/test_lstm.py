"""`RecurrentLSTMNetwork` against `torch.nn.LSTM`, and with batch normalization against a loop over `torch.nn.BatchNorm1d`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hesse.core import tree
from hesse.core.errors import DataError, StructureError
from hesse.nn.models import RecurrentLSTMNetwork

from .common import F64, check_part, filled, gradients, normal

close = torch.testing.assert_close


def test_it_is_that_of_torch() -> None:
    f, params = RecurrentLSTMNetwork(3, 5, output_type="all", dtype=F64)
    params, x, h, c = filled(params), normal(4, 6, 3), normal(4, 5, seed=9), normal(4, 5, seed=8)
    other = nn.LSTM(3, 5, batch_first=True, dtype=F64)
    with torch.no_grad():
        other.weight_ih_l0.copy_(params["weight_ih"])
        other.weight_hh_l0.copy_(params["weight_hh"])
        other.bias_ih_l0.copy_(params["bias"])
        other.bias_hh_l0.zero_()
    y, state = f(params, x, {"h": h, "c": c})
    expected, (last_h, last_c) = other(x, (h.unsqueeze(0), c.unsqueeze(0)))
    close(y, expected, rtol=1e-12, atol=1e-12)
    close(state, {"h": last_h[0], "c": last_c[0]}, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, y.numel() + 1, dtype=F64).reshape(y.shape).cos()
    theirs = torch.autograd.grad((expected * weights).sum(), [other.weight_ih_l0, other.weight_hh_l0, other.bias_ih_l0])
    for a, b in zip(gradients(f, params, x, {"h": h, "c": c}), theirs, strict=True):
        close(a, b, rtol=1e-10, atol=1e-10)


class Loop:
    """The normalized LSTM with a `BatchNorm1d` for each time step, which holds the running statistics."""

    def __init__(self, hidden: int, layers: int) -> None:
        self.hidden = hidden
        self.gates = [nn.BatchNorm1d(4 * hidden, dtype=F64) for _ in range(layers)]
        self.cells = [nn.BatchNorm1d(hidden, dtype=F64) for _ in range(layers)]

    def train(self, mode: bool) -> None:
        for norm in self.gates + self.cells:
            norm.train(mode)

    def normalize(self, norms: list[nn.BatchNorm1d], t: int, z: Tensor, scale: dict[str, Tensor]) -> Tensor:
        return norms[min(t, len(norms) - 1)](z) * scale["weight"] + scale["bias"]  # the module's own scale is 1, shift 0

    def __call__(self, params: Any, x: Tensor) -> Tensor:
        h, c = x.new_zeros(len(x), self.hidden), x.new_zeros(len(x), self.hidden)
        outputs = []
        for t in range(x.shape[1]):
            z = torch.cat([x[:, t], h], 1) @ torch.cat([params["weight_ih"], params["weight_hh"]], 1).T
            z = self.normalize(self.gates, t, z, params["gates"])
            i, f, g, o = z.reshape(len(x), 4, -1).unbind(1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(self.normalize(self.cells, t, c, params["cell"]))
            outputs.append(h)
        return torch.stack(outputs, 1)


@pytest.mark.parametrize("layers", [1, 3, 9])  # fewer than the six steps, and more
def test_batch_normalization(layers: int) -> None:
    f, params = RecurrentLSTMNetwork(
        3, 5, output_type="all", batch_normalization=True, max_batch_normalization_layers=layers, dtype=F64
    )
    params, loop, statistics = filled(params), Loop(5, layers), None
    for seed in (3, 4):
        x = normal(7, 6, 3, seed=seed)
        y, state = f(params, x, statistics, training=True)
        close(y, loop(params, x), rtol=1e-11, atol=1e-11)
        statistics = {"statistics": state["statistics"]}  # kept between sequences, unlike h and c
    for name, norms in (("gates", loop.gates), ("cell", loop.cells)):
        for kind in ("running_mean", "running_var"):
            close(state["statistics"][name][kind], torch.stack([getattr(norm, kind) for norm in norms]))
    assert not any(t.requires_grad for t in tree.leaves(statistics))
    loop.train(False)
    y, kept = f(params, x, statistics)
    close(y, loop(params, x), rtol=1e-11, atol=1e-11)
    close(kept["statistics"], statistics["statistics"], rtol=0, atol=0)
    close(f(params, x[2], statistics)[0], y[2], rtol=1e-11, atol=1e-11)  # one sequence, in evaluation
    fresh = Loop(5, layers)
    x = normal(7, 6, 3, seed=5)
    expected = gradients(fresh, params, x)
    for a, b in zip(gradients(f, params, x, training=True), expected, strict=True):
        close(a, b, rtol=1e-9, atol=1e-9)
    loop.train(False)
    for a, b in zip(gradients(f, params, x, statistics), gradients(loop, params, x), strict=True):
        close(a, b, rtol=1e-9, atol=1e-9)


def test_parameters_and_state_with_batch_normalization() -> None:
    f, params = RecurrentLSTMNetwork(3, 5, batch_normalization=True, dtype=F64)
    assert sorted(params) == ["cell", "gates", "weight_hh", "weight_ih"]  # no bias: the normalization has one
    for scale in (params["gates"], params["cell"]):
        assert bool((scale["weight"] == 0.1).all())
        assert not scale["bias"].any()
    assert f.initial_state(params)["statistics"]["gates"]["running_var"].shape == (10, 20)
    x = normal(4, 6, 3)
    y, state = f(params, x, training=True)
    kept = tree.map_tree(Tensor.clone, state)
    z, _ = f(params, x, state, training=True)
    assert not torch.equal(y, z)  # h and c are carried
    close(state, kept, rtol=0, atol=0)
    check_part(f, params, x, training=True)


def test_messages() -> None:
    f, params = RecurrentLSTMNetwork(3, 5, batch_normalization=True)
    with pytest.raises(DataError, match="more than one value"):
        f(params, torch.ones(6, 3), training=True)
    with pytest.raises(StructureError, match="at least 1"):
        RecurrentLSTMNetwork(3, 5, batch_normalization=True, max_batch_normalization_layers=0)
