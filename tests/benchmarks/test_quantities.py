import math

import pytest
import torch
from benchmarks.quantities import FUNCTIONS, MODEL_TITLES, PER_SAMPLE, TITLES, as_blocks, quantities_of, relative_error


def test_every_quantity_is_measured_on_some_model():
    assert {q for model in MODEL_TITLES for q in quantities_of(model)} == set(TITLES)
    assert set(quantities_of(FUNCTIONS)).isdisjoint(quantities_of("mlp"))
    assert all(set(quantities_of(model)) >= set(PER_SAMPLE) for model in MODEL_TITLES if model != FUNCTIONS)
    assert "hvp_first" in quantities_of("3c3d") and "hvp_first" not in quantities_of("resnet18")
    assert "hessian_diagonal" in quantities_of("3c3d") and "hessian_diagonal" not in quantities_of("transformer")


def test_error_is_relative_to_the_block():
    reference = {"a": torch.tensor([100.0, 1.0]), "b": torch.tensor([[0.5, -0.25]])}
    found = {"a": torch.tensor([100.0, 1.0]), "b": torch.tensor([[0.5, -0.2]])}
    assert relative_error(found, reference) == pytest.approx(0.05 / 0.5, rel=1e-5)


def test_rounding_of_a_block_that_vanishes_is_no_error():
    reference = {"a": torch.tensor([1.0]), "zero": torch.tensor([1e-17])}
    assert relative_error({"a": torch.tensor([1.0]), "zero": torch.tensor([3e-8])}, reference) < 1e-4
    assert relative_error({"a": torch.tensor([1.0]), "zero": torch.tensor([0.1])}, reference) > 10


@pytest.mark.parametrize(
    "found",
    [
        {"a": torch.tensor([1.0, math.nan])},
        {"a": torch.tensor([1.0])},
        {"b": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0])},
        {},
    ],
    ids=["nan", "shape", "name", "surplus", "empty"],
)
def test_a_result_of_another_form_is_infinitely_wrong(found):
    assert relative_error(found, {"a": torch.tensor([1.0, 2.0])}) == math.inf


def test_nan_in_one_block_is_not_hidden_by_the_next():
    reference = {"a": torch.ones(2), "b": torch.ones(2)}
    assert relative_error({"a": torch.full((2,), math.nan), "b": torch.ones(2)}, reference) == math.inf


def test_a_flat_matrix_is_split_in_the_order_of_the_parameters():
    shapes = {"w": (2, 3), "b": (2,)}
    J = torch.arange(4 * 8.0).reshape(4, 8)
    blocks = as_blocks("dense", J, shapes)
    assert torch.equal(blocks["w"], J[:, :6].reshape(4, 2, 3)) and torch.equal(blocks["b"], J[:, 6:])
    assert as_blocks("dense", J[:, :7], shapes) == {}
    assert as_blocks("output_jacobian", J, shapes).keys() == shapes.keys() and as_blocks("gram", J, shapes).keys() == {""}


def test_a_mapping_needs_every_parameter():
    shapes = {"w": (3,), "b": ()}
    assert list(as_blocks("squares", {"b": torch.ones(()), "w": torch.ones(3)}, shapes)) == ["w", "b"]
    assert as_blocks("squares", {"w": torch.ones(3)}, shapes) == {}


def test_a_flat_diagonal_is_split_and_factors_are_left_alone():
    shapes = {"w": (2, 3), "b": (2,)}
    blocks = as_blocks("ggn_diagonal", torch.arange(8.0), shapes)
    assert torch.equal(blocks["w"], torch.arange(6.0).reshape(2, 3)) and torch.equal(blocks["b"], torch.tensor([6.0, 7.0]))
    assert as_blocks("hessian_diagonal", torch.arange(7.0), shapes) == {}
    assert as_blocks("kfac", {"w (inputs)": torch.eye(3)}, shapes).keys() == {"w (inputs)"}
