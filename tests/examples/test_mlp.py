"""The network of three layers: its gradient is that of torch's own layers, and it learns the digits."""

from __future__ import annotations

import torch
from torch import nn

import hesse


def test_the_gradient_is_that_of_torch_s_layers(example) -> None:
    module = example("mlp")
    params = module.initial(torch.Generator().manual_seed(0))
    params = [{name: value.double() for name, value in layer.items()} for layer in params]
    x, y = torch.rand(6, 64, dtype=torch.float64), torch.tensor([3, 9, 0, 0, 7, 5])
    layers = [nn.Linear(*layer["W"].shape).double() for layer in params]
    with torch.no_grad():
        for layer, part in zip(layers, params, strict=True):
            layer.weight.copy_(part["W"].T)
            layer.bias.copy_(part["b"])
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    grads, value, _ = hesse.grad(module.loss)(params, x, y)
    assert torch.allclose(value, loss.detach(), rtol=1e-12)
    for layer, part in zip(layers, grads, strict=True):
        assert torch.allclose(part["W"], layer.weight.grad.T, rtol=1e-10, atol=1e-14)
        assert torch.allclose(part["b"], layer.bias.grad, rtol=1e-10, atol=1e-14)


def test_it_learns(example, tmp_path) -> None:
    module, training = example("mlp"), example("training")
    result = module.main(training.Options(tmp_path / "figure.png", epochs=5))
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert result.accuracies[-1] > 0.9 and result.losses[-1] < 0.2 < result.losses[0]
