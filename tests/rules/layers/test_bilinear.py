"""Bilinear layers on inputs of any rank and layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.rules.layers import Meeting, SampleAxis, layer_rules
from hesse.rules.layers.bilinear import OuterProducts
from tests.parameters.special import Free
from tests.rules.layers.comparing import compare, seeded, weight


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (1,)])
def test_any_rank(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Bilinear(3, 4, 2, bias=bias).double()
    compare(layer, seeded(6, *shape, 3), seeded(6, *shape, 4, seed=4))


def test_samples_in_the_middle() -> None:
    def positions_first(s: Any, x: Tensor, z: Tensor) -> Tensor:
        return F.bilinear(x.transpose(0, 1), z.transpose(0, 1), s.w, s.b).mean(0)

    model = Free(positions_first, w=weight(2, 3, 4), b=weight(2))
    compare(model, seeded(6, 5, 3), seeded(6, 5, 4, seed=4))


def test_one_output_and_the_same_input_twice() -> None:
    compare(Free(lambda s, x: F.bilinear(x.tanh(), x, s.w), w=weight(1, 3, 3)), seeded(4, 7, 3))


def test_inputs_that_are_parameters_take_the_exact_path() -> None:
    model = Free(lambda s, x: F.bilinear(s.v.expand(len(x), 3), x, s.w), v=weight(1, 3), w=weight(2, 3, 4))
    compare(model, seeded(5, 4))


def test_only_the_weight_has_a_rule() -> None:
    x, z, w = weight(5, 3), seeded(5, 4, seed=4), weight(2, 3, 4)
    node: Any = F.bilinear(x, z, w).grad_fn
    while node.name() != "TrilinearBackward0":
        node = node.next_functions[0][0]
    rule, g, places = layer_rules.lookup(node.name()), seeded(5, 2), {0: SampleAxis(0, 1, 1)}
    assert rule(Meeting(node, 0, {0: g}, places, x.shape)) is None
    assert rule(Meeting(node, 1, {0: g}, places, w.shape)) is not None


def test_other_trilinear_products_take_the_exact_path() -> None:
    def product(s: Any, x: Tensor, z: Tensor) -> Tensor:
        return torch._trilinear(x, s.w, z, [1], [0], [1], [2])  # pyright: ignore[reportAttributeAccessIssue]

    compare(Free(product, w=weight(2, 3)), seeded(4, 3), seeded(4, 3, seed=4), paths=frozenset({"masked"}))


def test_products_are_cut_by_sample() -> None:
    first, second = seeded(5, 4, 2), seeded(5, 4, 3, seed=4)
    whole = torch.einsum("ntp,ntq->ntpq", first, second).reshape(5, 1, 4, 6)
    products = OuterProducts(first, second)
    assert products.shape == whole.shape and products.dtype == whole.dtype
    assert torch.equal(products[1:3], whole[1:3])
    assert OuterProducts(first.float(), second).dtype == torch.float64
