"""The references of diagonals and Kronecker factors: against closed forms of a linear classifier and dense matrices."""

import pytest
import torch
from benchmarks.libraries.kronecker import INPUTS, MATRIX, OUTPUTS
from benchmarks.models import Problem, make_problem
from torch import nn

from benchmarks import curvature_reference as reference
from benchmarks import reference as first_order


def problem_of(model, *shape, count=6, classes=3, loss=None):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(0, classes, (count,), generator=generator)
    return Problem(model.double(), loss or nn.CrossEntropyLoss(), x, y)


@pytest.fixture
def linear():
    """Softmax regression of 6 samples with 5 features, with its probabilities and their curvature."""
    torch.manual_seed(0)
    problem = problem_of(nn.Sequential(nn.Linear(5, 3)), 5)
    p = torch.softmax(problem.model(problem.inputs), -1).detach()
    return problem, torch.diag_embed(p) - p[:, :, None] * p[:, None]


@pytest.fixture
def convolution():
    """Convolution, ReLU, maximum, dense layer; biases in the dense layer only."""
    torch.manual_seed(1)
    layers = [
        nn.Conv2d(2, 4, (3, 2), stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 3),
    ]
    return problem_of(nn.Sequential(*layers), 2, 6, 7)


def dense_ggn(problem):
    """By name: [size, size], from the Jacobian of the outputs and the curvature written out."""
    p = torch.softmax(problem.model(problem.inputs), -1).detach()
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    J = {n: b.reshape(*p.shape, -1) for n, b in first_order.output_rows(problem).items()}
    return {n: torch.einsum("nai,nab,nbj->ij", b, curvature, b) / len(p) for n, b in J.items()}


def dense_hessian_diagonal(problem):
    names = list(problem.params)

    def loss(*params):
        output = torch.func.functional_call(problem.model, dict(zip(names, params, strict=True)), (problem.inputs,))
        return problem.loss(output, problem.targets)

    params = tuple(p.detach() for p in problem.params.values())
    blocks = torch.autograd.functional.hessian(loss, params)
    return {
        n: blocks[k][k].reshape(p.numel(), -1).diagonal().reshape(p.shape) for k, (n, p) in enumerate(problem.params.items())
    }


def test_root(linear):
    problem, curvature = linear
    L = reference.root(problem.model(problem.inputs))
    torch.testing.assert_close(L @ L.mT, curvature)


def test_ggn_diagonal_of_a_linear_classifier(linear):
    problem, curvature = linear
    expected = torch.einsum("naa,ni->ai", curvature, problem.inputs.square()) / 6
    found = reference.ggn_diagonal(problem)
    torch.testing.assert_close(found["0.weight"], expected)
    torch.testing.assert_close(found["0.bias"], curvature.mean(0).diagonal())


def test_second_moments(convolution):
    G = dense_ggn(convolution)
    diagonal, blocks, traces = reference.second_moments(convolution, ["0.weight"], ["0.weight"])
    assert diagonal.keys() == G.keys() and blocks.keys() == traces.keys() == {"0.weight"}
    for name, block in diagonal.items():
        torch.testing.assert_close(block.flatten(), G[name].diagonal())
    torch.testing.assert_close(blocks["0.weight"], G["0.weight"])
    torch.testing.assert_close(traces["0.weight"], torch.einsum("aiaj->ij", G["0.weight"].reshape(4, 12, 4, 12)))


def test_hessian_diagonal_of_a_piecewise_linear_network_is_that_of_its_ggn(convolution):
    assert reference.is_piecewise_linear(convolution)
    found = reference.references(convolution, ["hessian_diagonal"])["hessian_diagonal"]
    for name, expected in dense_hessian_diagonal(convolution).items():
        torch.testing.assert_close(found[name], expected)


def test_hessian_diagonal_of_a_curved_network_is_not():
    torch.manual_seed(2)
    problem = problem_of(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), 4)
    assert not reference.is_piecewise_linear(problem)
    found = reference.references(problem, ["hessian_diagonal"])["hessian_diagonal"]
    expected = dense_hessian_diagonal(problem)
    for name, block in expected.items():
        torch.testing.assert_close(found[name], block)
    assert (reference.ggn_diagonal(problem)["0.weight"] - expected["0.weight"]).norm() > 0.1 * expected["0.weight"].norm()


@pytest.mark.parametrize(("name", "expected"), [("mlp", True), ("lenet", True), ("3c3d", True), ("transformer", False)])
def test_which_models_are_piecewise_linear(name, expected):
    assert reference.is_piecewise_linear(make_problem(name)) is expected


def test_kfac_is_exact_for_one_position_and_one_sample(linear):
    problem, _ = linear
    one = problem.head(1)
    found = reference.references(one, ["kfac"])["kfac"]
    expected = dense_ggn(one)
    block = torch.kron(found["0.weight" + OUTPUTS], found["0.weight" + INPUTS])
    torch.testing.assert_close(block, expected["0.weight"])
    torch.testing.assert_close(found["0.bias" + OUTPUTS], expected["0.bias"])
    torch.testing.assert_close(found["0.weight" + MATRIX], expected["0.weight"])


def test_kfac_of_a_convolution(convolution):
    """By loops over samples, classes and positions; the inputs of a position read from the padded image."""
    found = reference.references(convolution, ["kfac"])["kfac"]
    layer, rest = convolution.model[0], convolution.model[1:]
    padded = nn.functional.pad(convolution.inputs, (1, 1, 1, 1))
    A, G, terms = torch.zeros(12, 12).double(), torch.zeros(4, 4).double(), 0
    for n in range(6):
        hidden = layer(convolution.inputs[n : n + 1]).detach().requires_grad_()
        output = rest(hidden)
        p = torch.softmax(output[0], -1).detach()
        J = torch.stack([torch.autograd.grad(y, hidden, retain_graph=True)[0][0] for y in output[0]])
        for i in range(hidden.shape[2]):
            for j in range(hidden.shape[3]):
                z = padded[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 2].flatten()
                A += torch.outer(z, z)
                G += J[:, :, i, j].T @ (torch.diag(p) - torch.outer(p, p)) @ J[:, :, i, j]
                terms += 1
    block = torch.kron(found["0.weight" + OUTPUTS], found["0.weight" + INPUTS])
    torch.testing.assert_close(block, torch.kron(G, A) / terms / 6)
    assert found["0.weight" + INPUTS].trace() == pytest.approx(1.0)
    assert "4.bias" + OUTPUTS in found and not any(name.startswith("0.bias") for name in found)


def test_ekfac_keeps_the_diagonal_in_its_basis(convolution):
    found = reference.references(convolution, ["ekfac"])["ekfac"]
    G = dense_ggn(convolution)
    patches = nn.functional.unfold(convolution.inputs, (3, 2), padding=1, stride=2).transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        features = convolution.model[:4](convolution.inputs)
    for name, z, size in (("0.weight", patches, 4), ("4.weight", features, 3)):
        block = G[name].reshape(size, z.shape[1], size, z.shape[1])
        Q = torch.linalg.eigh(z.T @ z).eigenvectors
        trace = torch.einsum("aiaj->ij", block)
        torch.testing.assert_close(found[name + INPUTS], Q @ torch.diag((Q.T @ trace @ Q).diagonal()) @ Q.T)
        torch.testing.assert_close(found[name], G[name].trace())
    torch.testing.assert_close(found["4.weight" + OUTPUTS], torch.einsum("aibi->ab", G["4.weight"].reshape(3, 8, 3, 8)))
    torch.testing.assert_close(found["4.bias"], G["4.bias"].trace())
