"""The forms: products, roots and random roots against matrices written out; memory, dtypes, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hesse.core.errors import StructureError, SymmetryError
from hesse.rules.losses import OutputCurvature, Pairs, Pointwise, Softmax
from tests.rules.losses.oracles import assert_is, assert_samples_average_to, uniform_of


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _softmax_matrix(p: Tensor, scale: Tensor) -> Tensor:
    """Entry by entry: ``scale (p_c [c = d] - p_c p_d)`` where sample and position agree."""
    n, classes, positions = p.shape
    matrix = torch.zeros(n, classes, positions, n, classes, positions, dtype=p.dtype)
    for i in range(n):
        for t in range(positions):
            for c in range(classes):
                for d in range(classes):
                    matrix[i, c, t, i, d, t] = scale[i, 0, t] * (p[i, c, t] * (c == d) - p[i, c, t] * p[i, d, t])
    return matrix.reshape(p.numel(), p.numel())


def _pairs_matrix(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    n, d = a.shape
    matrix = torch.zeros(n, 2 * d, n, 2 * d, dtype=a.dtype)
    for i in range(n):
        for j in range(d):
            matrix[i, j, i, j], matrix[i, j + d, i, j + d] = a[i, j], c[i, j]
            matrix[i, j, i, j + d] = matrix[i, j + d, i, j] = b[i, j]
    return matrix.reshape(2 * n * d, 2 * n * d)


def test_pointwise_is_a_diagonal() -> None:
    for shape in ((3,), (3, 2), (2, 3, 4)):
        weights = _random(*shape).abs()
        weights.flatten()[1] = 0
        assert_is(Pointwise(weights), torch.diag(weights.flatten()))
        assert_is(Pointwise(weights - 0.5), torch.diag(weights.flatten() - 0.5))
        assert Pointwise(weights).count == weights[0].numel()
    assert_is(Pointwise(_random(4, 3).abs().T), torch.diag(_random(4, 3).abs().T.flatten()))


def test_softmax_is_its_matrix() -> None:
    p, scale = _random(3, 4, 2).softmax(1), _random(3, 1, 2).abs()
    scale[0, 0, 1] = 0
    assert_is(Softmax(p, scale), _softmax_matrix(p, scale))
    assert_is(Softmax(p, scale - 1), _softmax_matrix(p, scale - 1))
    folded = Softmax(p[..., None].expand(3, 4, 2, 1).reshape(3, 4, 1, 2), scale.reshape(3, 1, 1, 2))
    assert_is(folded, _softmax_matrix(p, scale))
    assert_is(Softmax(p[:, :, 0], scale[:, :, 0]), _softmax_matrix(p[:, :, :1], scale[:, :, :1]))


def test_roots_are_in_the_order_of_a_samples_elements() -> None:
    for form in (Softmax(_random(2, 4, 3).softmax(1), torch.ones(2, 1, 3)), Pointwise(_random(2, 3, 2).square())):
        for k in range(form.count):
            assert torch.equal((form.root(k).flatten(1) > 0).nonzero(), torch.tensor([[0, k], [1, k]]))


def test_pairs_are_their_blocks() -> None:
    a, b, c = _random(3, 2, seed=1).abs() + 1, _random(3, 2, seed=2), _random(3, 2, seed=3).abs() + 1
    definite = b * 0.9 * (a * c).sqrt() / b.abs().max()
    definite[0] = 0
    assert Pairs(a, definite, c).is_psd
    assert_is(Pairs(a, definite, c), _pairs_matrix(a, definite, c))
    for wrong in ((a, 2 * (a * c).sqrt(), c), (-a, definite, c), (a, definite, -c)):
        assert not Pairs(*wrong).is_psd
        assert_is(Pairs(*wrong), _pairs_matrix(*wrong))


def test_pairs_of_rank_one_and_zero_have_roots() -> None:
    u, v = _random(3, 2, seed=1), _random(3, 2, seed=2)
    u[0, 0] = v[0, 0] = v[1, 0] = u[1, 1] = 0
    form = Pairs(u * u, u * v, v * v)
    assert form.is_psd
    expected = _pairs_matrix(u * u, u * v, v * v)
    found = sum(torch.outer(form.root(k)[i], form.root(k)[i]) for k in range(4) for i in [2])
    torch.testing.assert_close(found, expected[8:, 8:], rtol=1e-7, atol=1e-9)
    assert float(form.root(0)[0, 0]) == 0 and not bool(torch.isnan(form.root(0)).any())


def test_random_roots_average_to_the_matrix() -> None:
    many = 40_000
    weights = torch.tensor([[2.0, 0.0, 0.5]], dtype=torch.float64)
    assert_samples_average_to(Pointwise(weights.expand(many, 3)), torch.diag(weights[0]), 1)
    p, scale = _random(1, 4, 2).softmax(1), torch.tensor([[[0.7, 2.0]]], dtype=torch.float64)
    form = Softmax(p.expand(many, 4, 2), scale.expand(many, 1, 2))
    assert_samples_average_to(form, _softmax_matrix(p, scale), 2)
    a, b, c = (torch.full((1, 1), x, dtype=torch.float64) for x in (2.0, -0.8, 0.6))
    pairs = Pairs(a.expand(many, 1), b.expand(many, 1), c.expand(many, 1))
    assert_samples_average_to(pairs, _pairs_matrix(a, b, c), 3)


def test_signs_have_no_variance_on_the_diagonal() -> None:
    weights = _random(5, 3).abs()
    torch.testing.assert_close(Pointwise(weights).sample(uniform_of(0)).square(), weights)


def test_a_random_root_of_softmax_is_a_drawn_gradient() -> None:
    p, scale = _random(6, 4, 2).softmax(1), _random(6, 1, 2).abs() + 0.1
    drawn = p - Softmax(p, scale).sample(uniform_of(5)) / scale.sqrt()
    assert torch.equal(drawn.round(), torch.nn.functional.one_hot(drawn.argmax(1), 4).movedim(-1, 1).double())
    torch.testing.assert_close(drawn, drawn.round())


class _Largest(TorchDispatchMode):
    """The number of elements of the largest tensor made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_fifty_thousand_classes_take_memory_like_the_output() -> None:
    p, scale = torch.randn(2, 50_000, 3).softmax(1), torch.ones(2, 1, 3)
    with _Largest() as largest:
        form = Softmax(p, scale)
        form.diagonal()
        form.mv(p)
        form.root(123_456)
        form.sample(uniform_of(0))
    assert largest.elements == p.numel()
    with _Largest() as largest:
        form.mv(p.expand(4, *p.shape))
    assert largest.elements == 4 * p.numel()


def _forms_of(dtype: torch.dtype) -> list[OutputCurvature]:
    x = _random(3, 4)
    return [
        Pointwise(x.abs(), dtype=dtype),
        Softmax(x.softmax(1), x[:, :1].abs(), dtype=dtype),
        Pairs(x.abs() + 2, x, x.abs() + 3, dtype=dtype),
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_have_the_outputs_dtype_and_sixteen_bits_are_computed_with_in_float32(dtype: torch.dtype) -> None:
    for form, exact in zip(_forms_of(dtype), _forms_of(torch.float64), strict=True):
        v = _random(2, *form.shape, seed=4).to(dtype)
        pairs = [(form.mv(v), exact.mv(v.double())), (form.diagonal(), exact.diagonal()), (form.root(2), exact.root(2))]
        pairs.append((form.sample(uniform_of(0)), exact.sample(uniform_of(0))))
        for found, expected in pairs:
            assert found.dtype == dtype
            size = float(expected.abs().max())
            torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=2e-7 * size)


def test_forms_are_cut_from_the_graph() -> None:
    x = _random(3, 4).requires_grad_()
    for form in (Pointwise(x.square()), Softmax(x.softmax(1), x[:, :1].square()), Pairs(x.square() + 9, x, x.square() + 9)):
        made = [form.mv(_random(*form.shape)), form.diagonal(), form.root(0), form.sample(uniform_of(0))]
        assert not any(result.requires_grad for result in made)


def test_changing_a_result_does_not_change_the_form() -> None:
    for form in _forms_of(torch.float64):
        before = form.mv(torch.ones(form.shape, dtype=torch.float64))
        form.diagonal().zero_()
        form.root(0).zero_()
        assert torch.equal(form.mv(torch.ones(form.shape, dtype=torch.float64)), before)


def test_roots_of_an_indefinite_form_are_refused() -> None:
    x = torch.tensor([[1.0, -1.0], [2.0, 3.0], [-1.0, -1.0]])
    forms = [Pointwise(x, negative="why it is"), Softmax(x.softmax(1), x[:, 1:], negative="why it is"),
             Pairs(x, x, x, negative="why it is")]  # fmt: skip
    for form in forms:
        for ask in (lambda form=form: form.root(0), lambda form=form: form.sample(uniform_of(0))):
            with pytest.raises(SymmetryError, match=r"2 of 3 samples: why it is(.|\n)*Fisher information"):
                ask()


def test_there_is_no_other_root() -> None:
    for form in _forms_of(torch.float64):
        for k in (-1, form.count):
            with pytest.raises(StructureError, match=f"root {k} of {form.count}"):
                form.root(k)


def test_vectors_of_another_shape_are_refused() -> None:
    for form in _forms_of(torch.float64):
        for shape in ((3, 1), (4,), form.shape[::-1], (*form.shape, 2)):
            with pytest.raises(StructureError, match="outputs of shape"):
                form.mv(torch.ones(shape))


def test_nan_shows_in_results_instead_of_being_called_indefinite() -> None:
    form = Pointwise(torch.tensor([[float("nan"), 1.0]]))
    assert form.is_psd and bool(torch.isnan(form.root(0)[0, 0]))


@pytest.mark.parametrize("shape", [(4, 5), (3, 2), (2, 1), (3, 4, 2)])
def test_several_roots_at_once(shape: tuple[int, ...]) -> None:
    p = _random(*shape).softmax(1)
    p[0, 1:] = 0  # a sample that is sure, so that columns vanish
    p[0, 0] = 1
    form = Softmax(p, _random(shape[0], 1, *shape[2:], seed=1).square())
    for start, stop in ((0, form.count), (0, 1), (form.count - 1, form.count), (1, form.count)):
        if start < stop:
            found = form.roots(start, stop)
            torch.testing.assert_close(found, torch.stack([form.root(k) for k in range(start, stop)]), rtol=1e-14, atol=0)
    with pytest.raises(StructureError, match="roots"):
        form.roots(0, form.count + 1)
    with pytest.raises(SymmetryError):
        Softmax(p, -torch.ones(shape[0], 1, *shape[2:], dtype=p.dtype)).roots(0, 1)
