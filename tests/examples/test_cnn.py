"""The convolutional network: its gradient is that of the same modules in a row, and it learns the digits."""

from __future__ import annotations

import torch
from torch import nn

import hesse


def test_the_gradient_is_that_of_the_modules(example) -> None:
    module = example("cnn")
    predict, params = module.network()
    convolution1, convolution2, linear = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 16, 5, padding=2), nn.Linear(64, 10)
    parts = dict(zip(params, (convolution1, convolution2, linear), strict=True))
    for name, part in parts.items():
        part.load_state_dict(params[name])
        part.double()
    params = {name: {key: value.double() for key, value in part.items()} for name, part in params.items()}
    pieces = [convolution1, nn.Tanh(), nn.MaxPool2d(2), convolution2, nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), linear]
    x, y = torch.rand(5, 1, 8, 8, dtype=torch.float64), torch.tensor([1, 9, 9, 0, 4])
    nn.functional.cross_entropy(nn.Sequential(*pieces)(x), y).backward()
    grads = hesse.grad(lambda p: nn.functional.nll_loss(predict(p, x), y))(params).grads
    for name, part in parts.items():
        for key, parameter in part.named_parameters():
            assert torch.allclose(grads[name][key], parameter.grad, rtol=1e-10, atol=1e-14), (name, key)


def test_it_learns(example, tmp_path) -> None:
    module, training = example("cnn"), example("training")
    result = module.main(training.Options(tmp_path / "figure.png", epochs=3))
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert result.accuracies[-1] > 0.93 and result.losses[-1] < 0.25
