"""Logistic regression: the loss is scikit-learn's, its gradient the textbook's, and it learns the digits."""

from __future__ import annotations

import torch

import hesse


def test_the_gradient_is_the_textbook_s(example) -> None:
    module = example("logistic")
    generator = torch.Generator().manual_seed(0)
    params = {"W": torch.randn(7, 5, dtype=torch.float64, generator=generator), "b": torch.randn(5, dtype=torch.float64)}
    x, y = torch.randn(3, 7, dtype=torch.float64, generator=generator), torch.tensor([4, 0, 4])
    grads, value, prediction = hesse.grad(module.loss)(params, x, y)
    p = (x @ params["W"] + params["b"]).softmax(1)
    residual = (p - torch.eye(5, dtype=torch.float64)[y]) / 3
    assert torch.allclose(grads["W"], x.T @ residual, rtol=1e-12, atol=1e-14)
    assert torch.allclose(grads["b"], residual.sum(0), rtol=1e-12, atol=1e-14)
    assert torch.allclose(value, -p[range(3), y].log().mean(), rtol=1e-12) and torch.allclose(prediction.exp(), p, rtol=1e-12)


def test_it_learns(example, tmp_path) -> None:
    module, training = example("logistic"), example("training")
    result = module.main(training.Options(tmp_path / "figure.png", epochs=2))
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert result.accuracies[-1] > 0.9 and result.losses[1] < 0.6 * result.losses[0]
    assert result.matrix.sum() == 360 and result.matrix.diag().sum() / 360 == result.accuracies[-1]
