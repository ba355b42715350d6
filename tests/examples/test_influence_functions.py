"""Influences are the formula, and what leaving out an image does."""

from __future__ import annotations

import torch
from torch import nn


def objective_gradient(layer: nn.Linear, inputs: torch.Tensor, labels: torch.Tensor, prior: float) -> torch.Tensor:
    total = nn.functional.cross_entropy(layer(inputs), labels, reduction="sum")
    total = total + prior / 2 * sum(p.square().sum() for p in layer.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(layer.parameters()))])


def test_influence_is_the_formula(example) -> None:
    module = example("influence_functions")
    torch.manual_seed(0)
    model = module.LeNet().double()
    training = (torch.rand(9, 1, 8, 8, dtype=torch.float64), torch.arange(9) % 4)
    test = (torch.rand(2, 1, 8, 8, dtype=torch.float64), torch.tensor([1, 3]))
    z, t = module.features(model, training[0]), module.features(model, test[0])
    W, b = (p.detach() for p in model.fc3.parameters())

    def loss(flat: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        scores = inputs @ flat[: W.numel()].reshape(W.shape).T + flat[W.numel() :]
        return nn.functional.cross_entropy(scores, labels, reduction="sum")

    flat = torch.cat([W.flatten(), b])
    H = torch.autograd.functional.hessian(lambda w: loss(w, z, training[1]), flat)
    gradients = [torch.func.grad(loss)(flat, z[n : n + 1], training[1][n : n + 1]) for n in range(9)]
    solved = torch.linalg.solve(H + module.PRIOR * torch.eye(len(H)), torch.func.grad(loss)(flat, t, test[1]))
    expected = torch.stack([g @ solved for g in gradients])
    assert (module.influence(model, training, test) - expected).norm() < 1e-8 * expected.norm()


def test_it_predicts_what_leaving_out_does(example, tmp_path) -> None:
    module = example("influence_functions")
    result = module.main(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert result.correlation > 0.95 and len(result.left_out) >= 15
    large = result.actual.abs() > 0.1
    assert large.sum() >= 3
    assert torch.equal(result.predicted[result.left_out][large].sign(), result.actual[large].sign().double())


def test_the_layer_is_at_its_minimum(example) -> None:
    module = example("influence_functions")
    torch.manual_seed(1)
    layer = nn.Linear(7, 3).double()
    inputs, labels = torch.randn(20, 7, dtype=torch.float64), torch.randint(3, (20,))
    assert objective_gradient(layer, inputs, labels, module.PRIOR).norm() > 1
    module.fit(layer, inputs, labels)
    assert objective_gradient(layer, inputs, labels, module.PRIOR).abs().max() < 1.1e-3
