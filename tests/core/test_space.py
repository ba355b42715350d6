"""Spaces: what they know of a tree, flat vectors and back, checks that name the leaf."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hesse.core.errors import HesseError, LeafError, StructureError
from hesse.core.space import Space

F64, F32, F16, C128 = torch.float64, torch.float32, torch.float16, torch.complex128


@dataclass
class Layer:
    weight: Any
    bias: Any
    stride: int = 1


TREE = {
    "z": Layer(torch.zeros(2, 3, dtype=F64), torch.zeros(2, dtype=F64)),
    "a": [torch.zeros((), dtype=F64)],
}
SPACE = Space.of(TREE)


def vector(*batch: int) -> dict[str, Any]:
    def t(*shape: int, start: int) -> torch.Tensor:
        return torch.arange(start, start + torch.Size((*batch, *shape)).numel(), dtype=F64).reshape((*batch, *shape))

    return {"z": Layer(t(2, 3, start=0), t(2, start=100)), "a": [t(start=200)]}


def test_what_it_knows() -> None:
    assert SPACE.names == ("z.weight", "z.bias", "a.0")
    assert SPACE.shapes == ((2, 3), (2,), ())
    assert SPACE.sizes == (6, 2, 1)
    assert SPACE.dim == 9
    assert SPACE.dtypes == (F64,) * 3
    assert SPACE.devices == (torch.device("cpu"),) * 3
    assert (SPACE.dtype, SPACE.device) == (F64, torch.device("cpu"))


def test_python_numbers_are_scalar_leaves_of_the_default_dtype(untouched: None) -> None:
    space = Space.of({"a": 1.5, "n": 3, "c": 1j})
    assert space.names == ("a", "c")
    assert space.dtypes == (F32, torch.complex64)
    assert space.shapes == ((), ())
    previous = torch.get_default_dtype()
    try:
        torch.set_default_dtype(F64)
        assert Space.of(1.5).dtype == F64
    finally:
        torch.set_default_dtype(previous)


def test_ravel_is_in_the_order_of_insertion() -> None:
    assert SPACE.ravel(vector()).tolist() == [0, 1, 2, 3, 4, 5, 100, 101, 200]


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3), (0,), (2, 0)], ids=str)
def test_ravel_and_unravel_with_batch_axes(batch: tuple[int, ...]) -> None:
    v = vector(*batch)
    flat = SPACE.ravel(v, len(batch))
    assert flat.shape == (*batch, 9)
    expected = [v["z"].weight.flatten(len(batch)), v["z"].bias, v["a"][0].unsqueeze(-1)]
    assert torch.equal(flat, torch.cat(expected, dim=-1))
    again = SPACE.unravel(flat)
    assert isinstance(again["z"], Layer)
    assert again["z"].stride == 1
    assert torch.equal(again["z"].weight, v["z"].weight)
    assert torch.equal(again["z"].bias, v["z"].bias)
    assert torch.equal(again["a"][0], v["a"][0])


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=5),
    st.lists(st.integers(0, 3), max_size=2),
)
def test_any_shapes_come_back(shapes: list[list[int]], batch: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    space = Space.of([torch.zeros(shape) for shape in shapes])
    value = [torch.randn([*batch, *shape], generator=generator) for shape in shapes]
    flat = space.ravel(value, len(batch))
    assert flat.shape == (*batch, space.dim)
    for again, leaf in zip(space.unravel(flat), value, strict=True):
        assert torch.equal(again, leaf)


def test_mixed_dtypes_promote_and_come_back() -> None:
    space = Space.of({"half": torch.zeros(2, dtype=F16), "single": torch.zeros(1), "double": torch.zeros(1, dtype=F64)})
    assert space.dtype == F64
    v = {
        "half": torch.tensor([1.5, -2.0], dtype=F16),
        "single": torch.ones(1),
        "double": torch.ones(1, dtype=F64),
    }
    assert space.ravel(v).dtype == F64
    again = space.unravel(space.ravel(v))
    assert [leaf.dtype for leaf in again.values()] == [F16, F32, F64]
    assert again["half"].tolist() == [1.5, -2.0]


def test_the_empty_space() -> None:
    space = Space.of({"n": 3, "nothing": []})
    assert (space.dim, space.names, space.dtype) == (0, (), torch.get_default_dtype())
    assert space.ravel({"n": 3, "nothing": []}).shape == (0,)
    assert space.unravel(torch.zeros(0)) == {"n": 3, "nothing": []}


def test_unravel_needs_the_dimension() -> None:
    with pytest.raises(StructureError, match=r"(?s)shape \(2, 8\) for a space of dimension 9"):
        SPACE.unravel(torch.zeros(2, 8))


def test_unravel_keeps_complex_out_of_real_spaces() -> None:
    with pytest.raises(LeafError, match="complex"):
        SPACE.unravel(torch.zeros(9, dtype=C128))


def test_autograd_passes_through() -> None:
    x = torch.randn(9, dtype=F64, requires_grad=True)
    y = SPACE.ravel(SPACE.unravel(x) | {"a": [SPACE.unravel(x)["a"][0] * 3]})
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.tolist() == [1.0] * 8 + [3.0]


class TestCheck:
    """`check` gives the leaves, or names the first one that is wrong."""

    def test_gives_tensors(self) -> None:
        space = Space.of({"a": torch.zeros((), dtype=F64), "b": torch.zeros(2)})
        a, b = space.check({"a": 2.5, "b": torch.ones(2)}, "v")
        assert (a.item(), a.dtype) == (2.5, F64)
        assert b.tolist() == [1, 1]

    @pytest.mark.parametrize("batch_ndim", [2, None])
    def test_batch_axes(self, batch_ndim: int | None) -> None:
        parts = SPACE.check(vector(2, 3), "v", batch_ndim)
        assert [tuple(part.shape) for part in parts] == [(2, 3, 2, 3), (2, 3, 2), (2, 3)]

    @pytest.mark.parametrize(
        ("value", "error", "said"),
        [
            ({"z": TREE["z"]}, StructureError, "no leaf at 'a.0'"),
            ({**TREE, "more": torch.zeros(1)}, StructureError, "an unknown leaf at 'more'"),
            (
                {"a": TREE["a"], "z": TREE["z"]},
                StructureError,
                r"the leaves in the order \['a.0', 'z.weight'",
            ),
            ({**TREE, "a": [torch.zeros(1)]}, StructureError, r"\(1,\) at 'a.0', where \(\) belongs"),
            ({**TREE, "a": [torch.zeros((), dtype=C128)]}, LeafError, "complex128 at 'a.0'"),
            ({**TREE, "a": [1j]}, LeafError, "at 'a.0'"),
            ({**TREE, "a": [None]}, StructureError, "no leaf at 'a.0'"),
            ({**TREE, "a": ["text"]}, StructureError, "no leaf at 'a.0'"),
            (torch.zeros(9), StructureError, "an unknown leaf at the only leaf"),
        ],
    )
    def test_names_the_leaf(self, value: Any, error: type[HesseError], said: str) -> None:
        with pytest.raises(error, match=said) as caught:
            SPACE.check(value, "the tangent")
        assert str(caught.value).startswith("the tangent")
        assert caught.value.remedy

    def test_unequal_batch_axes(self) -> None:
        value = vector(4) | {"a": [torch.zeros(5)]}
        with pytest.raises(StructureError, match=r"\(5,\) at 'a.0'"):
            SPACE.check(value, "v", 1)
        with pytest.raises(StructureError, match=r"'z.bias'"):
            SPACE.check({"z": Layer(torch.zeros(4, 2, 3), torch.zeros(2)), "a": [torch.zeros(4)]}, "v", None)

    def test_too_few_axes(self) -> None:
        with pytest.raises(StructureError, match=r"'z\.weight'"):
            SPACE.check({"z": Layer(torch.zeros(6), torch.zeros(2)), "a": [torch.zeros(())]}, "v", None)

    def test_many_missing_leaves_are_cut_short(self) -> None:
        space = Space.of({f"k{i}": torch.zeros(1) for i in range(9)})
        with pytest.raises(StructureError) as caught:
            space.check({}, "v")
        assert caught.value.found == "no leaf at 'k0', 'k1', 'k2' ..."


class TestEquality:
    """Spaces are equal where names and shapes are; containers and dtypes may differ."""

    def test_equal(self) -> None:
        same = {"z": {"weight": torch.ones(2, 3), "bias": torch.ones(2)}, "a": (torch.ones(()),)}
        assert Space.of(same) == SPACE
        assert hash(Space.of(same)) == hash(SPACE)
        assert Space.of(OrderedDict(TREE)) == SPACE

    @pytest.mark.parametrize(
        "other",
        [
            {"a": TREE["a"], "z": TREE["z"]},
            {"z": TREE["z"], "b": TREE["a"]},
            {"z": Layer(torch.zeros(3, 2), torch.zeros(2)), "a": TREE["a"]},
            torch.zeros(9),
        ],
    )
    def test_unequal(self, other: Any) -> None:
        assert Space.of(other) != SPACE
        assert SPACE != "no space"


class TestVectors:
    """Zeros and random vectors of a space."""

    @pytest.mark.parametrize("make", [Space.zeros, Space.normal, Space.rademacher])
    @pytest.mark.parametrize("batch", [(), (3,), (2, 4)], ids=str)
    def test_belong_to_it(self, make, batch: tuple[int, ...], untouched: None) -> None:
        space = Space.of({"s": torch.zeros(()), "d": torch.zeros(2, 3, dtype=F64), "c": torch.zeros(2, dtype=C128)})
        v = make(space, *batch)
        parts = space.check(v, "v", len(batch))
        assert [part.dtype for part in parts] == list(space.dtypes)

    def test_zeros(self) -> None:
        assert not SPACE.ravel(SPACE.zeros()).any()

    def test_reproducible(self, untouched: None) -> None:
        def draw(seed: int) -> torch.Tensor:
            return SPACE.ravel(SPACE.normal(generator=torch.Generator().manual_seed(seed)))

        assert torch.equal(draw(3), draw(3))
        assert not torch.equal(draw(3), draw(4))
        assert torch.equal(SPACE.ravel(SPACE.normal()), SPACE.ravel(SPACE.normal()))
        generator = torch.Generator().manual_seed(3)
        first, second = (SPACE.ravel(SPACE.normal(generator=generator)) for _ in range(2))
        assert not torch.equal(first, second)

    def test_distributions(self) -> None:
        big = Space.of({"r": torch.zeros(50_000, dtype=F64), "c": torch.zeros(50_000, dtype=C128)})
        normal, signs = big.normal(), big.rademacher()
        for leaf in (normal["r"], normal["c"], signs["r"], signs["c"]):
            assert abs(leaf.mean()) < 0.02
            assert abs((leaf.abs() ** 2).mean() - 1) < 0.03
        assert set(signs["r"].tolist()) == {-1.0, 1.0}


def test_printed_form() -> None:
    assert repr(SPACE) == "Space(dim=9, float64: 'z.weight' [2, 3], 'z.bias' [2], 'a.0' [])"
    assert str(Space.of(torch.zeros(4))) == "Space(dim=4, float32: the only leaf [4])"
    many = Space.of({f"k{i}": torch.zeros(i) for i in range(20)})
    assert repr(many) == "Space(dim=190, float32: 'k0' [0], 'k1' [1], ... 17 more ..., 'k19' [19])"
