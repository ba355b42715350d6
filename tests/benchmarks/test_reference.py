"""The references of the benchmarks against closed forms for a linear classifier and against forward mode."""

import pytest
import torch
from benchmarks.models import BLOCK, CLASSES, MODELS, Problem, make_functions, make_problem
from torch import nn

from benchmarks import reference


@pytest.fixture
def linear():
    """Softmax regression of 7 samples with 5 features in float64, with its probabilities."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Linear(5, 4).double()
    x = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 4, (7,), generator=generator)
    vectors = {
        "weight": torch.randn(3, 4, 5, dtype=torch.float64),
        "bias": torch.randn(3, 4, dtype=torch.float64),
    }
    problem = Problem(model, nn.CrossEntropyLoss(), x, y, vectors)
    return problem, torch.softmax(model(x), -1).detach()


def test_rows_and_gram(linear):
    problem, p = linear
    residual = p - nn.functional.one_hot(problem.targets, 4)
    rows = reference.rows(problem)
    torch.testing.assert_close(rows["weight"], residual[:, :, None] * problem.inputs[:, None])
    torch.testing.assert_close(rows["bias"], residual)
    J = torch.cat([rows["weight"].flatten(1), rows["bias"]], dim=1)
    torch.testing.assert_close(reference.gram(rows), J @ J.T)


@pytest.mark.parametrize("product", [reference.hessian_product, reference.ggn_product])
def test_products(linear, product):
    """For a linear model, Hessian and GGN are both ``1/N sum_n (diag p - p p') x z z'`` with z = (x, 1)."""
    problem, p = linear
    z = torch.cat([problem.inputs, torch.ones(7, 1)], dim=1)
    V = torch.cat([problem.vectors["weight"], problem.vectors["bias"][..., None]], dim=-1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    expected = torch.einsum("nab,nj,kbj,ni->kai", curvature, z, V, z) / 7
    found = product(problem, problem.vectors)
    torch.testing.assert_close(found["weight"], expected[..., :5])
    torch.testing.assert_close(found["bias"], expected[..., 5])


def test_small_functions():
    small = make_functions().double()
    torch.testing.assert_close(reference.jacobian(small.f, small.x), torch.func.jacfwd(small.f)(small.x))
    second = torch.func.jacfwd(torch.func.grad(small.g))(small.x)
    torch.testing.assert_close(reference.hessian(small.g, small.x), second)
    assert reference.jacobian(small.f, small.x).shape == (60, 100)


@pytest.mark.parametrize("name", MODELS)
def test_models_are_the_same_every_time(name):
    state = torch.random.get_rng_state()
    first, second = make_problem(name), make_problem(name)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.inputs, second.inputs) and torch.equal(first.targets, second.targets)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert first.model(first.inputs[:2]).shape == (2, CLASSES)
    assert {n: v.shape for n, v in first.vectors.items()} == {n: (BLOCK, *p.shape) for n, p in first.params.items()}
