"""The flow's log-determinant is that of its Jacobian, its inverse undoes it, and training lowers the bits."""

from __future__ import annotations

import pytest
import torch


def jittered(module, kernel: int = 3, blocks: int = 2):
    torch.manual_seed(0)
    flow = module.Flow(kernel, blocks)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return flow


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_log_determinant_is_that_of_the_jacobian(example, kernel) -> None:
    module = example("invertible_flow")
    flow, x = jittered(module, kernel), torch.rand(2, *module.SHAPE, dtype=torch.float64)
    _, logdet = flow(x)
    for picture, found in zip(x, logdet, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda p: flow(p[None])[0][0], picture).reshape(64, 64)
        torch.testing.assert_close(found.detach(), torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-10, atol=1e-10)


def test_its_derivative_by_the_kernel_is_that_of_the_matrix(example) -> None:
    module = example("invertible_flow")
    mixing = jittered(module).steps[0]
    (found,) = torch.autograd.grad(mixing(torch.zeros(1, *module.SHAPE, dtype=torch.float64))[1], mixing.weight)
    weight = mixing.weight.detach().clone().requires_grad_()
    units = torch.eye(64, dtype=torch.float64).reshape(64, *module.SHAPE)
    whole = torch.nn.functional.conv2d(units, weight, padding=1).reshape(64, 64)
    (expected,) = torch.autograd.grad(torch.linalg.slogdet(whole).logabsdet, weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_the_inverse_undoes_the_flow(example) -> None:
    module = example("invertible_flow")
    flow, x = jittered(module), torch.rand(5, *module.SHAPE, dtype=torch.float64)
    torch.testing.assert_close(flow.inverse(flow(x)[0]), x, rtol=1e-9, atol=1e-9)


def test_the_periodic_formula_is_that_of_a_circular_convolution(example) -> None:
    module = example("invertible_flow")
    weight = jittered(module).steps[0].weight.detach()
    units = torch.eye(64, dtype=torch.float64).reshape(64, *module.SHAPE)
    padded = torch.nn.functional.pad(units, (1, 1, 1, 1), mode="circular")
    whole = torch.nn.functional.conv2d(padded, weight).reshape(64, 64)
    assert module.periodic_logdet(weight) == pytest.approx(torch.linalg.slogdet(whole).logabsdet.item(), rel=1e-10)


def test_training_lowers_the_bits_and_the_figure_is_drawn(example, tmp_path) -> None:
    module = example("invertible_flow")
    result = module.main(tmp_path / "figure.png", 12, 2)
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    for trained in result.by_kernel.values():
        assert trained.train[-1] < trained.train[0] - 0.3
    assert result.back < 1e-10 and result.samples.shape == (24, 1, 8, 8)
    assert max(abs(a - b) for a, b in zip(result.exact, result.periodic, strict=True)) > 1e-4
