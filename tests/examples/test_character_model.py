"""Character models: windows, clipping, states, the gradient, and that they learn more than pairs of characters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hesse

NAMES = ["LSTM", "GRU", "FW"]


def leaves(tree: dict | list | Tensor) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(part)]


def doubled(tree):
    if isinstance(tree, Tensor):
        return tree.double()
    return {k: doubled(v) for k, v in tree.items()} if isinstance(tree, dict) else [doubled(part) for part in tree]


def test_windows_follow_each_other(example) -> None:
    module = example("character_model")
    codes = torch.arange(47)
    drawn = list(module.windows(codes, 3, 5))
    assert len(drawn) == 3
    assert torch.equal(torch.cat([x for x, _ in drawn], 1), torch.arange(45).reshape(3, 15))
    assert all(torch.equal(y, x + 1) for x, y in drawn)


@pytest.mark.parametrize(("max_norm", "factor"), [(1.0, 0.2), (10.0, 1.0)])
def test_steps_are_clipped_to_the_norm_of_all_leaves(example, max_norm, factor) -> None:
    params = {"a": [torch.zeros(2), torch.zeros(1)], "b": {"c": torch.zeros(1)}}
    grads = {"a": [torch.tensor([1.0, 2.0]), torch.tensor([-2.0])], "b": {"c": torch.tensor([4.0])}}
    assert example("character_model").descend(params, grads, 0.5, max_norm) == pytest.approx(5.0)
    for parameter, gradient in zip(leaves(params), leaves(grads), strict=True):
        assert torch.allclose(parameter, -0.5 * factor * gradient)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_goes_on_and_the_gradient_does_not(example, name) -> None:
    module = example("character_model")
    run = module.build(name, hidden=6)
    params, x = doubled(run.params), torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(0))
    start = doubled(module.zero_states(run, 2))
    whole, _ = module.predict(run.layers, params, x, start)
    first, states = module.predict(run.layers, params, x[:, :4], start)
    second, _ = module.predict(run.layers, params, x[:, 4:], states)
    assert torch.allclose(torch.cat([first, second], 1), whole, rtol=1e-10)
    _, _, after = hesse.grad(module.make_loss(run.layers, 0.0))(params, x[:, :4], x[:, 1:5], start)
    assert not any(leaf.requires_grad for leaf in leaves(after))
    assert all(torch.allclose(a, b) for a, b in zip(leaves(after), leaves(states), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_autograd(example, name) -> None:
    module = example("character_model")
    run = module.build(name, hidden=5)
    params = doubled(run.params)
    x, y = (torch.randint(70, (3, 4), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    start = doubled(module.zero_states(run, 3))
    grads, value, _ = hesse.grad(module.make_loss(run.layers, 0.0))(params, x, y, start)
    variables = leaves(params)
    for leaf in variables:
        leaf.requires_grad_()
    log_p, _ = module.predict(run.layers, params, x, start)
    loss = -sum(log_p[i, t, y[i, t]] for i in range(3) for t in range(4)) / 12
    for found, expected in zip(leaves(grads), torch.autograd.grad(loss, variables), strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-13)
    assert torch.allclose(value, loss, rtol=1e-12)


def test_the_stacked_lstm_is_torch_s(example) -> None:
    module = example("character_model")
    run = module.build("LSTM", hidden=6)
    params, x = doubled(run.params), torch.randint(70, (2, 5), generator=torch.Generator().manual_seed(0))
    layer = nn.LSTM(module.FEATURES, 6, num_layers=2, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for index, part in enumerate(params["layers"]):
            getattr(layer, f"weight_ih_l{index}").copy_(part["weight_ih"])
            getattr(layer, f"weight_hh_l{index}").copy_(part["weight_hh"])
            getattr(layer, f"bias_ih_l{index}").copy_(part["bias"])
            getattr(layer, f"bias_hh_l{index}").zero_()
    outputs, _ = layer(params["table"][x])
    expected = (outputs @ params["scores"]["weight"].T + params["scores"]["bias"]).log_softmax(2)
    log_p, _ = module.predict(run.layers, params, x, doubled(module.zero_states(run, 2)))
    assert torch.allclose(log_p, expected, rtol=1e-10)


def test_dropout_stands_at_three_places(example, monkeypatch) -> None:
    module, seen = example("character_model"), []
    monkeypatch.setattr(module, "dropout", lambda z, p: seen.append((tuple(z.shape), p)) or z)
    run = module.build("GRU", hidden=6)
    module.make_loss(run.layers, 0.3)(run.params, torch.zeros(2, 4).long(), torch.zeros(2, 4).long(), [None, None])
    assert seen == [((2, 4, module.FEATURES), 0.3), ((2, 4, 6), 0.3), ((2, 4, 6), 0.3)]


def test_it_learns_more_than_pairs_and_halves_the_rate(example, tmp_path) -> None:
    module, training = example("character_model"), example("training")
    (run,) = module.main(training.Options(tmp_path / "figure.png", epochs=3, models=("GRU",)))
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    pairs = example("ngrams").perplexity(*[example("text").split()[i] for i in (0, 2)], 1, len(example("text").characters()))
    assert run.test < pairs
    rate = module.RATES["GRU"]
    assert run.rates[:2] == [rate, rate]
    better = [after <= 0.9 * before for before, after in zip(run.validation, run.validation[1:], strict=False)]
    assert run.rates[2] == (rate if better[0] else rate / 2)
