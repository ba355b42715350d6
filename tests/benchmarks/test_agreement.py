"""Right results that are drawn agree with their reference; wrong scales, sides and bases do not."""

import math

import pytest
import torch
from benchmarks.agreement import DRAWS, FORM, TOTAL, disagreement
from benchmarks.libraries import kronecker
from benchmarks.libraries.kronecker import INPUTS, MATRIX, OUTPUTS
from benchmarks.models import Problem
from benchmarks.quantities import SAMPLED, TOLERANCE
from benchmarks.worker import _mean
from torch import nn

from benchmarks import curvature_reference


@pytest.fixture(scope="module")
def problem():
    """A small network, its inputs far from white, so that an eigenbasis is well told from others."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5)).double()
    x = torch.randn(100, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 1
    return Problem(model, nn.CrossEntropyLoss(), x, torch.randint(0, 5, (100,)))


@pytest.fixture(scope="module")
def references(problem):
    return curvature_reference.references(problem, list(SAMPLED))


@pytest.fixture(scope="module")
def means(problem):
    """Means over draws by loops: labels are drawn, and the gradient of each sample's loss is taken at its label."""
    torch.manual_seed(8)

    def draw(quantity):
        output = problem.model(problem.inputs)
        labels = torch.multinomial(torch.softmax(output, -1), 1)[:, 0]
        rows = []
        for n in range(100):
            loss = nn.functional.cross_entropy(problem.model(problem.inputs[n : n + 1]), labels[n : n + 1])
            rows.append(torch.autograd.grad(loss, list(problem.params.values())))
        J = dict(zip(problem.params, map(torch.stack, zip(*rows, strict=True)), strict=True))
        if quantity == "ggn_diagonal_sampled":
            return {name: block.square().mean(0) for name, block in J.items()}
        sides = {}
        hidden = problem.model[:2](problem.inputs).detach()
        for layer, z in (("0", problem.inputs), ("2", hidden)):
            g = J[f"{layer}.bias"]  # of a dense layer, the gradient by its outputs
            sides[layer] = g.T @ g / 100, z.T @ z / 100
        if quantity == "kfac":
            return kronecker.factors(
                {f"{k}.weight": pair for k, pair in sides.items()} | {f"{k}.bias": (sides[k][0],) for k in sides}
            )
        eigen = {}
        for layer, (G, A) in sides.items():
            P, Q = torch.linalg.eigh(G).eigenvectors, torch.linalg.eigh(A).eigenvectors
            eigen[f"{layer}.weight"] = P, Q, (P.T @ J[f"{layer}.weight"] @ Q).square().mean(0)
            eigen[f"{layer}.bias"] = P, None, (J[f"{layer}.bias"] @ P).square().mean(0)
        return kronecker.corrected(eigen)

    return {quantity: _mean(lambda quantity=quantity: draw(quantity), DRAWS) for quantity in SAMPLED}


def agrees(quantity, found, reference):
    error, tolerance = disagreement(quantity, found, reference)
    return error < tolerance


@pytest.mark.parametrize("quantity", SAMPLED)
def test_right_results_agree(quantity, means, references):
    assert agrees(quantity, means[quantity], references[quantity])


@pytest.mark.parametrize("quantity", SAMPLED)
@pytest.mark.parametrize("scale", [0.5, 0.87, 1.15, 2.0])
def test_a_wrong_scale_of_one_block_does_not(quantity, scale, means, references):
    name = next(n for n in references[quantity] if n.startswith("2.weight") and not n.endswith(MATRIX))
    other = {n: b * scale if n == name else b for n, b in means[quantity].items()}
    assert not agrees(quantity, other, references[quantity])
    assert not agrees(quantity, {n: b * scale for n, b in means[quantity].items()}, references[quantity])


def test_an_unsquared_or_permuted_diagonal_does_not(means, references):
    quantity = "ggn_diagonal_sampled"
    for wrong in (lambda b: b.sqrt() * b.sum() / b.sqrt().sum(), lambda b: b.flip(0)):
        other = {n: wrong(b) for n, b in means[quantity].items()}
        assert not agrees(quantity, other, references[quantity])


def test_input_factors_are_compared_exactly(means, references):
    other = means["kfac"] | {"2.weight" + INPUTS: means["kfac"]["2.weight" + INPUTS] * (1 + 2 * TOLERANCE)}
    assert not agrees("kfac", other, references["kfac"])


@pytest.mark.parametrize("side", [INPUTS, OUTPUTS])
def test_a_factor_of_the_wrong_basis_does_not(side, means, references):
    """A diagonal with the right trace, as of the unit vectors for the eigenvectors."""
    for quantity in ("kfac", "ekfac"):
        name = "2.weight" + side
        other = means[quantity] | {name: torch.diag(means[quantity][name].diagonal())}
        assert not agrees(quantity, other, references[quantity])


def test_a_weight_may_come_as_a_whole_matrix(means, references):
    matrix = references["kfac"]["0.weight" + MATRIX]
    other = {n: b for n, b in means["kfac"].items() if not n.startswith("0.weight")}
    assert disagreement("kfac", other, references["kfac"])[0] == math.inf
    assert agrees("kfac", other | {"0.weight" + MATRIX: matrix}, references["kfac"])
    assert not agrees("kfac", other | {"0.weight" + MATRIX: matrix * 1.2}, references["kfac"])


def test_nan_and_other_shapes_do_not_agree(means, references):
    for block in (means["kfac"]["0.bias" + OUTPUTS] * math.nan, torch.ones(2, 2)):
        assert not agrees("kfac", means["kfac"] | {"0.bias" + OUTPUTS: block}, references["kfac"])


def test_what_is_determined_is_compared_entry_by_entry():
    reference = {"a": torch.tensor([1.0, 2.0])}
    assert disagreement("ggn_diagonal", {"a": torch.tensor([1.0, 2.01])}, reference) == (
        pytest.approx(0.005, rel=1e-3),
        TOLERANCE,
    )
    assert TOTAL < 1 / 9 and set(FORM) == set(SAMPLED)  # a factor C / (C - 1) of ten classes is found


def test_draws_of_different_forms_have_no_mean():
    blocks = iter([{"a": torch.ones(2)}, {"a": torch.ones(3)}])
    assert _mean(lambda: next(blocks), 2) == {}
    numbers = iter([1.0, 2.0, 6.0])
    assert float(_mean(lambda: {"a": torch.tensor(next(numbers))}, 3)["a"]) == 3.0
