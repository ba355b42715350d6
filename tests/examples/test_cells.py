"""Derivatives written by hand are those of torch's own recurrent layers, and of differences of the loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

CHARACTERS, STEPS, HIDDEN = 7, 5, 3
DATA = (torch.tensor([6, 0, 3, 3, 1]), torch.tensor([0, 3, 3, 1, 5]))


def drawn(params: dict) -> dict:
    generator = torch.Generator().manual_seed(5)
    for part in ("weights", "state"):
        for value in params[part].values():
            value += 0.3 * torch.randn(value.shape, dtype=torch.float64, generator=generator)
    return params


def by_torch(layer: nn.Module, params: dict, weights: dict[str, Tensor], state: tuple[Tensor, ...] | Tensor, first: int):
    """Loss and gradients of a layer of torch's, with the output layer behind it, from step `first` on."""
    with torch.no_grad():
        for name, value in weights.items():
            getattr(layer, name).copy_(value)
    Why, by = (params["weights"][name].clone().requires_grad_() for name in ("Why", "by"))
    outputs, _ = layer(torch.eye(CHARACTERS, dtype=torch.float64)[DATA[0]], state)
    outputs.retain_grad()
    loss = nn.functional.cross_entropy((outputs @ Why.T + by)[first:], DATA[1][first:], reduction="sum")
    loss.backward()
    return loss.detach(), {"dWhy": Why.grad, "dby": by.grad}, outputs


@pytest.mark.parametrize("first", [0, 3])
def test_the_plain_network_by_hand_is_torch_s(example, first) -> None:
    module = example("cells")
    params = drawn(module.rnn_params(CHARACTERS, STEPS, HIDDEN))
    w, h = params["weights"], params["state"]["h"].clone()[None].requires_grad_()
    layer = nn.RNN(CHARACTERS, HIDDEN, dtype=torch.float64)
    weights = {"weight_ih_l0": w["Wxh"], "weight_hh_l0": w["Whh"], "bias_ih_l0": w["bh"], "bias_hh_l0": 0 * w["bh"]}
    loss, expected, _ = by_torch(layer, params, weights, h, first)
    expected |= {"dWxh": layer.weight_ih_l0.grad, "dWhh": layer.weight_hh_l0.grad, "dbh": layer.bias_ih_l0.grad}
    expected |= {"dhnext": h.grad[0]}
    d, value, _ = module.rnn_by_hand(params, DATA, first)
    assert torch.allclose(value, loss, rtol=1e-12)
    assert d.keys() - expected.keys() == {"dh", "dhraw"}
    for name, gradient in expected.items():
        assert gradient.norm() > 0 and torch.allclose(d[name], gradient, rtol=1e-10, atol=1e-13), name


@pytest.mark.parametrize("first", [0, 3])
def test_the_lstm_by_hand_is_torch_s(example, first) -> None:
    module = example("cells")
    params = drawn(module.lstm_params(CHARACTERS, STEPS, HIDDEN))
    w, order = params["weights"], torch.tensor([0, 1, 2, 3, 4, 5, 9, 10, 11, 6, 7, 8])  # torch's gates are i, f, g, o
    h, c = (params["state"][name].clone()[None].requires_grad_() for name in ("h", "c"))
    layer = nn.LSTM(CHARACTERS, HIDDEN, dtype=torch.float64)
    weights = {"weight_ih_l0": w["Wx"][order], "weight_hh_l0": w["Wh"][order], "bias_ih_l0": w["b"][order]}
    loss, expected, _ = by_torch(layer, params, weights | {"bias_hh_l0": 0 * w["b"]}, (h, c), first)
    found = {"dWx": layer.weight_ih_l0.grad, "dWh": layer.weight_hh_l0.grad, "db": layer.bias_ih_l0.grad}
    expected |= {name: gradient[order] for name, gradient in found.items()} | {"dhnext": h.grad[0], "dcnext": c.grad[0]}
    d, value, _ = module.lstm_by_hand(params, DATA, first)
    assert torch.allclose(value, loss, rtol=1e-12)
    assert d.keys() - expected.keys() == {"dh", "dc", "da"}
    for name, gradient in expected.items():
        assert gradient.norm() > 0 and torch.allclose(d[name], gradient, rtol=1e-10, atol=1e-13), name


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_derivatives_of_every_step_are_differences_of_the_loss(example, cell) -> None:
    module = example("cells")
    params = drawn(getattr(module, f"{cell}_params")(CHARACTERS, STEPS, HIDDEN))
    d, _, _ = getattr(module, f"{cell}_by_hand")(params, DATA)
    loss, size = getattr(module, f"{cell}_loss"), 1e-5
    for name, shift in params["shifts"].items():
        derivative = d["dhraw" if name == "raw" else f"d{name}"]
        for place in ((0, 0), (2, 1), (4, shift.shape[1] - 1)):
            values = []
            for step in (size, -size):
                shift[place] = step
                values.append(loss(params, DATA)[0])
            shift[place] = 0
            assert abs((values[0] - values[1]) / (2 * size) - derivative[place]) < 1e-9, (name, place)
