"""The autoencoder: a tied weight's gradient is the sum of both uses, and ten numbers keep most of an image."""

from __future__ import annotations

import torch

import hesse


def test_tied_weights_gather_both_uses(example) -> None:
    module = example("tied_autoencoder")
    params = module.initial(torch.Generator().manual_seed(0))
    params = {name: [value.double() for value in values] for name, values in params.items()}
    x = torch.rand(4, 64, dtype=torch.float64)
    grads, value, rebuilt = hesse.grad(module.loss)(params, x)
    up = [W.clone().requires_grad_() for W in params["W"]]
    down = [W.clone().requires_grad_() for W in params["W"]]
    z = x
    for W, b in zip(up, params["encode"], strict=True):
        z = 1 / (1 + torch.exp(-(z @ W + b)))
    for W, b in zip(down[::-1], params["decode"][::-1], strict=True):
        z = 1 / (1 + torch.exp(-(z @ W.mT + b)))
    loss = sum(-(x[n] * z[n].log() + (1 - x[n]) * (1 - z[n]).log()).sum() for n in range(4)) / 4
    loss = loss + module.PENALTY / 2 * sum(W.square().sum() for W in up)
    expected = torch.autograd.grad(loss, [*up, *down])
    assert torch.allclose(value, loss.detach(), rtol=1e-12) and torch.allclose(rebuilt, z.detach(), rtol=1e-12)
    for found, first, second in zip(grads["W"], expected[:3], expected[3:], strict=True):
        assert second.norm() > 1e-3 * first.norm()
        assert torch.allclose(found, first + second, rtol=1e-9, atol=1e-13)


def test_it_learns(example, tmp_path) -> None:
    module, training = example("tied_autoencoder"), example("training")
    result = module.main(training.Options(tmp_path / "figure.png", epochs=8))
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    mean = training.load_rows()[0][0].mean(0).expand_as(result.images)
    assert result.test[-1] < result.test[0] < 30
    assert (result.rebuilt - result.images).square().sum() < 0.55 * (mean - result.images).square().sum()
