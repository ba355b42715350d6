"""What all recurrent networks share, on the plain one: shapes, states, output types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hesse.core import tree
from hesse.core.errors import LeafError, StructureError
from hesse.nn.models import RecurrentFWNetwork, RecurrentGRUNetwork, RecurrentLSTMNetwork, RecurrentNetwork

from .common import F64, check_part, filled, generator, gradients, normal

close = torch.testing.assert_close
NETWORKS: list[Any] = [RecurrentNetwork, RecurrentGRUNetwork, RecurrentLSTMNetwork, RecurrentFWNetwork]


def test_the_plain_network_is_that_of_torch() -> None:
    f, params = RecurrentNetwork(3, 5, output_type="all", dtype=F64)
    params, x, h = filled(params), normal(4, 6, 3), normal(4, 5, seed=9)
    other = nn.RNN(3, 5, batch_first=True, dtype=F64)
    with torch.no_grad():
        for name, value in (("weight_ih_l0", "weight_ih"), ("weight_hh_l0", "weight_hh"), ("bias_ih_l0", "bias")):
            getattr(other, name).copy_(params[value])
        other.bias_hh_l0.zero_()
    y, state = f(params, x, {"h": h})
    expected, last = other(x, h.unsqueeze(0))
    close(y, expected, rtol=1e-12, atol=1e-12)
    close(state, {"h": last[0]}, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, y.numel() + 1, dtype=F64).reshape(y.shape).cos()
    theirs = torch.autograd.grad((expected * weights).sum(), [other.weight_ih_l0, other.weight_hh_l0, other.bias_ih_l0])
    for a, b in zip(gradients(f, params, x, {"h": h}), theirs, strict=True):
        close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("network", NETWORKS)
def test_last_all_single_and_batch_agree(network: Any) -> None:
    f, params = network(3, 5, output_type="all", dtype=F64)
    last, _ = network(3, 5, dtype=F64)
    params, x = filled(params), normal(4, 6, 3)
    y, state = f(params, x)
    assert y.shape == (4, 6, 5)
    close(last(params, x)[0], y[:, -1])
    close(last(params, x)[1], state)
    close(state["h"], y[:, -1])
    for n in range(4):
        single, own = f(params, x[n])
        close(single, y[n], rtol=1e-12, atol=1e-12)
        close(own, tree.map_tree(lambda t, n=n: t[n], state), rtol=1e-12, atol=1e-12)
        close(last(params, x[n])[0], y[n, -1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_sequence_in_two_parts_is_the_sequence(network: Any) -> None:
    f, params = network(3, 5, output_type="all", dtype=F64)
    params, x = filled(params), normal(4, 7, 3)
    y, state = f(params, x)
    first, between = f(params, x[:, :3])
    second, after = f(params, x[:, 3:], between)
    close(torch.cat([first, second], 1), y, rtol=1e-12, atol=1e-12)
    close(after, state, rtol=1e-12, atol=1e-12)
    _, between = f(params, x[2, :3])
    close(f(params, x[2, 3:], between)[0], y[2, 3:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_pure(network: Any) -> None:
    f, params = network(3, 5, dtype=F64, generator=generator())
    check_part(f, params, normal(4, 6, 3))
    _, again = network(3, 5, dtype=F64, generator=generator())
    close(params, again, rtol=0, atol=0)
    assert params["weight_hh"].abs().max() <= 5**-0.5
    assert params["weight_ih"].abs().max() <= 5**-0.5
    assert params["weight_hh"].abs().max() > 0.7 * 5**-0.5
    assert not params["bias"].any()


@pytest.mark.parametrize("network", NETWORKS)
def test_the_state_hangs_on_the_graph(network: Any) -> None:
    f, params = network(3, 5, dtype=F64)
    x = normal(4, 6, 3).requires_grad_()
    _, state = f(params, x)
    assert all(t.requires_grad for t in tree.leaves(state))


@pytest.mark.parametrize("network", NETWORKS)
def test_samples_by_vmap(network: Any) -> None:
    f, params = network(3, 5, dtype=F64)
    params, x = filled(params), normal(4, 6, 3)
    close(torch.vmap(lambda one: f(params, one)[0])(x), f(params, x)[0])


def test_the_defaults_are_those_of_the_original() -> None:
    for network in NETWORKS:
        f, params = network()
        assert (f.input_features, f.hidden_features, f.output_type) == (10, 100, "last")
        assert params["weight_ih"].shape[1] == 10


def test_messages() -> None:
    f, params = RecurrentNetwork(3, 5)
    with pytest.raises(StructureError, match="3 features"):
        f(params, torch.ones(4, 6, 2))
    with pytest.raises(StructureError, match="at least one step"):
        f(params, torch.ones(4, 0, 3))
    with pytest.raises(StructureError, match="batch, steps"):
        f(params, torch.ones(3))
    with pytest.raises(LeafError, match="int64"):
        f(params, torch.ones(6, 3, dtype=torch.int64))
    with pytest.raises(StructureError, match="'h' has shape"):
        f(params, torch.ones(4, 6, 3), {"h": torch.ones(3, 5)})
    with pytest.raises(StructureError, match="'c'"):
        f(params, torch.ones(4, 6, 3), {"c": torch.ones(4, 5)})
    with pytest.raises(StructureError, match="a Tensor"):
        f(params, torch.ones(4, 6, 3), torch.ones(4, 5))
    wrong: Any = "first"
    with pytest.raises(StructureError, match="'first'"):
        RecurrentNetwork(3, 5, output_type=wrong)
    with pytest.raises(StructureError, match="positive"):
        RecurrentNetwork(3, 0)
