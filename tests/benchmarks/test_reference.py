"""The references of the benchmarks against closed forms for a linear classifier and against forward mode."""

import pytest
import torch
from benchmarks.models import BLOCK, MODELS, Problem, make_functions, make_problem
from benchmarks.quantities import FUNCTIONS, MODEL_TITLES, WITH_CURVATURE
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


def test_clipped_sum(linear):
    """Rows ``residual x z'`` of a linear model have the norm ``|residual| |z|``; those above the bound are scaled to it."""
    problem, p = linear
    residual = p - nn.functional.one_hot(problem.targets, 4)
    norms = residual.norm(dim=1) * (problem.inputs.square().sum(1) + 1).sqrt()
    rows = reference.rows(problem)
    torch.testing.assert_close(reference.norms(rows), norms)
    bound = norms.sort().values[3] * 1.01
    scaled = torch.stack([r if n <= bound else r * bound / n for r, n in zip(residual, norms, strict=True)])
    found = reference.clipped_sum(rows, bound)
    torch.testing.assert_close(found["weight"], scaled.T @ problem.inputs)
    torch.testing.assert_close(found["bias"], scaled.sum(0))


def test_what_is_clipped_is_clipped_to_the_median_norm(linear):
    problem, _ = linear
    found = reference.references(problem, ["norms", "clipped_sum"])
    assert found.keys() == {"norms", "clipped_sum", "max_norm"}
    assert (found["norms"][""] > found["max_norm"][""]).sum() == 3
    expected = reference.clipped_sum(reference.rows(problem.double()), found["max_norm"][""])
    torch.testing.assert_close(found["clipped_sum"]["weight"], expected["weight"])


def test_rows_of_outputs_and_their_kernel(linear):
    """Outputs ``W x + b``: the row of element c is x in row c of W; the kernel is ``(x x' + 1)`` times the identity."""
    problem, _ = linear
    rows = reference.output_rows(problem)
    x = problem.inputs
    torch.testing.assert_close(rows["weight"].reshape(7, 4, 4, 5), torch.einsum("ab,ni->nabi", torch.eye(4).double(), x))
    torch.testing.assert_close(rows["bias"], torch.eye(4).double().repeat(7, 1))
    expected = torch.einsum("nm,ab->namb", x @ x.T + 1, torch.eye(4).double())
    torch.testing.assert_close(reference.kernel(problem), expected)


def test_rows_of_a_loss_over_positions_are_unreduced():
    problem = make_problem("lstm").double().head(3)
    rows = reference.rows(problem)
    output = problem.model(problem.inputs)
    losses = problem.sample_losses(output)
    torch.testing.assert_close(losses.sum(), problem.loss(output, problem.targets) * problem.targets.numel())
    for n in range(3):
        (expected,) = torch.autograd.grad(losses[n], problem.params["lstm.weight_ih_l0"], retain_graph=True)
        torch.testing.assert_close(rows["lstm.weight_ih_l0"][n], expected)


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


def test_every_model_has_a_title():
    assert [*MODELS, FUNCTIONS] == list(MODEL_TITLES) and set(WITH_CURVATURE) <= set(MODELS)


def test_the_small_convolution_has_33_parameters_and_one_output():
    problem = make_problem("conv3d")
    assert sum(p.numel() for p in problem.params.values()) == 33
    assert problem.model(problem.inputs).shape == problem.targets.shape == (1000, 1)


def test_batch_normalization_keeps_samples_apart():
    """In eval mode, with running statistics that are neither 0 and 1 nor those of another batch of two."""
    problem = make_problem("resnet18")
    norms = [layer for layer in problem.model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 20 and not any(layer.training for layer in norms)
    assert all(layer.running_mean.abs().max() > 1e-3 and (layer.running_var - 1).abs().max() > 1e-3 for layer in norms)
    with torch.no_grad():
        torch.testing.assert_close(problem.model(problem.inputs)[:2], problem.model(problem.inputs[:2]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_models_are_the_same_every_time(name):
    state = torch.random.get_rng_state()
    first, second = make_problem(name), make_problem(name)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.inputs, second.inputs) and torch.equal(first.targets, second.targets)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    few = first.head(2)
    assert few.sample_losses(few.model(few.inputs)).shape == (2,)
    expected = {n: (BLOCK, *p.shape) for n, p in first.params.items()} if name in WITH_CURVATURE else {}
    assert {n: v.shape for n, v in first.vectors.items()} == expected
