"""Sparse structure of Jacobians and Hessians: beside rows of torch.autograd.grad, by counted passes, where it must not act."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.autodiff.recording import Recording
from hesse.core.errors import MemoryBudgetError, StructureError, UnsupportedError
from hesse.derivatives import structure as module
from hesse.operators import Sparse
from tests.autodiff import one_way

D = torch.float64


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def rows_of(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Jacobian, a row at a time."""
    leaf = x.detach().clone().requires_grad_()
    y = f(leaf)
    rows = [
        torch.autograd.grad(e, leaf, retain_graph=True, allow_unused=True)[0] if e.requires_grad else None for e in y.flatten()
    ]
    return torch.stack([torch.zeros_like(x) if g is None else g for g in rows]).reshape(y.shape + x.shape)


def hessian_of(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    def gradient(point: Tensor) -> Tensor:
        return torch.autograd.grad(f(point), point, create_graph=True)[0]

    return rows_of(gradient, x)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def burgers(u: Tensor) -> Tensor:
    p = nn.functional.pad(u, (1, 1))
    return -u * (p[2:] - p[:-2]) + 0.01 * (p[2:] - 2 * u + p[:-2])


def grid(u: Tensor) -> Tensor:
    return u**3 + torch.roll(u, 1, 0) * torch.roll(u, -1, 1)


def wide(x: Tensor) -> Tensor:
    return (x[::2] * x[1::2]).view(3, -1)


def branching(x: Tensor) -> Tensor:
    return x**2 if x[0] > 0 else x.sin()


def straight_through(x: Tensor) -> Tensor:
    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, t: Tensor) -> Tensor:
            return t.sign()

        @staticmethod
        def backward(ctx: Any, *g: Tensor) -> Tensor:
            return g[0]

    return Sign.apply(x) * x  # pyright: ignore


CATALOGUE: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "Burgers": (burgers, draw(23)),
    "grid": (grid, draw(5, 7)),
    "wide": (wide, draw(24)),
    "branch": (branching, draw(9)),
    "straight-through": (straight_through, draw(8) - 0.5),
    "dense": (lambda x: torch.softmax(x, 0), draw(6)),
    "scalar": (lambda x: (x**2).sum(), draw(5)),
    "of a scalar": (lambda x: x * torch.arange(4, dtype=D), draw()),
    "constant": (lambda x: 0 * x[:3] + 1, draw(5)),
    "pooling": (lambda x: nn.functional.max_pool1d(x[None], 3)[0], draw(15)),
    "sorted": (lambda x: x.sort().values[:4], draw(9)),
    "batched": (lambda x: torch.tanh(x @ draw(3, 2)), draw(6, 3)),
}


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_sparse_jacobians_are_the_dense_ones(name: str, mode: Any) -> None:
    f, x = CATALOGUE[name]
    value, found = hesse.jacobian(f, x, structure="sparse", mode=mode)
    expected = rows_of(f, x)
    assert torch.equal(value, f(x))
    close(found, expected)
    tensor = hesse.jacobian(f, x, structure="sparse", layout="sparse", mode=mode).jacobian
    assert tensor.layout is torch.sparse_coo
    assert tensor.is_coalesced()
    assert tensor.shape == expected.shape
    close(tensor.to_dense(), expected)
    operator = hesse.jacobian(f, x, structure="sparse", layout="operator", mode=mode).jacobian
    assert isinstance(operator, Sparse)
    close(hesse.dense(operator), expected.reshape(f(x).numel(), x.numel()))


def chained(x: Tensor) -> Tensor:
    return ((x[1:] - x[:-1] ** 2) ** 2).sum() + (1 - x).prod()


def arrow(x: Tensor) -> Tensor:
    return (x[0] * x[1:] ** 3).sum() + x.exp().sum()


SCALARS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "chain": (lambda x: ((x[1:] - x[:-1] ** 2) ** 2).sum(), draw(11)),
    "arrow": (arrow, draw(9)),
    "grid": (lambda x: (grid(x) ** 2).sum(), draw(4, 5)),
    "dense": (chained, draw(6)),
    "linear": (lambda x: x.sum(), draw(4)),
    "one": (lambda x: x**3, draw()),
}


@pytest.mark.parametrize("name", SCALARS)
def test_sparse_hessians_are_the_dense_ones(name: str) -> None:
    f, x = SCALARS[name]
    expected = hessian_of(f, x)
    value, found = hesse.hessian(f, x, structure="sparse")
    close(value, f(x))
    close(found, expected)
    tensor = hesse.hessian(f, x, structure="sparse", layout="sparse").hessian
    assert tensor.layout is torch.sparse_coo
    close(tensor.to_dense(), expected)
    operator = hesse.hessian(f, x, structure="sparse", layout="operator").hessian
    assert operator.T is operator
    close(hesse.dense(operator), expected.reshape(x.numel(), x.numel()))


def test_trees_and_mixed_dtypes() -> None:
    x = {"b": draw(2, 3), "a": (draw(4, seed=1).float(), draw(seed=2))}

    def f(t: Any) -> Any:
        return [t["b"][:, 1:] * t["a"][1], {"k": t["a"][0].double()[::2] ** 2 + t["b"][0, 0]}]

    dense, sparse, tensors = (
        hesse.jacobian(f, x, structure=s, layout=how).jacobian  # pyright: ignore
        for s, how in (("dense", None), ("sparse", None), ("sparse", "sparse"))
    )
    for pair in ((0, ("b",)), (0, ("a", 0)), (0, ("a", 1)), ("k", ("b",)), ("k", ("a", 0)), ("k", ("a", 1))):
        blocks = []
        for table in (dense, sparse, tensors):
            block = table[0] if pair[0] == 0 else table[1]["k"]
            for key in pair[1]:
                block = block[key]
            blocks.append(block)
        assert blocks[0].dtype == blocks[1].dtype == blocks[2].dtype
        torch.testing.assert_close(blocks[1], blocks[0])
        torch.testing.assert_close(blocks[2].to_dense(), blocks[0])

    def g(t: Any) -> Tensor:
        return (t["b"] ** 3).sum() * t["a"][1] + (t["a"][0].double() ** 2).sum()

    first, second = (hesse.hessian(g, x, structure=s).hessian for s in ("dense", "sparse"))  # pyright: ignore
    torch.testing.assert_close(second, first)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many vectors each backward pass takes along."""
    counts, original = [], Recording.pull

    def pull(self: Recording, cotangents: Any, *, batched: bool = False) -> list[Tensor]:
        counts.append(next(len(u) for u in cotangents if u is not None) if batched else 1)
        return original(self, cotangents, batched=batched)

    monkeypatch.setattr(Recording, "pull", pull)
    return counts


def test_a_batched_network_takes_four_passes_without_being_told(passes: list[int]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    x = draw(1024, 8)
    result = hesse.jacobian(network, x, layout="sparse").jacobian
    assert passes[:4] == [1, 1, 1, 1]  # rows, to see that it may be sparse
    assert passes[-1] == 1  # the random check
    assert sum(passes[4:-1]) == 4
    expected = torch.func.vmap(torch.func.jacrev(network))(x)
    assert result.shape == (1024, 4, 1024, 8)
    assert result._nnz() == 1024 * 4 * 8
    places = result.indices()
    assert torch.equal(places[0], places[2])
    close(result.values(), expected.flatten())


def test_an_arrow_head_takes_few_products(passes: list[int]) -> None:
    n = 3200
    x = draw(n)

    def f(t: Tensor) -> Tensor:
        heads = t[:2]
        return (heads[:, None] * t[2:] ** 2).sum() + (t**3).sum() + heads.prod()

    found = hesse.hessian(f, x, layout="sparse").hessian
    assert passes[:4] + passes[-1:] == [1] * 5  # rows, to see that it may be sparse, and the random check
    assert sum(passes[4:-1]) <= 5
    assert found._nnz() == n + 2 * 2 * (n - 2) + 2
    entries = found.to_dense()
    close(entries.diagonal()[2:], 2 * x[:2].sum() + 6 * x[2:])
    close(entries.diagonal()[:2], 6 * x[:2])
    close(entries[:2, 2:], (2 * x[2:]).expand(2, -1))
    assert float(entries[0, 1]) == 1


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the looks for structure found; every matrix is large enough for one."""
    found, original = [], module._look

    def look(*args: Any) -> Any:
        found.append(original(*args))
        return found[-1]

    monkeypatch.setattr(module, "_look", look)
    monkeypatch.setattr(module, "_FEWEST", 1)
    monkeypatch.setattr(module, "_LOOK", 0)
    monkeypatch.setattr(module, "_LOOK_AN_OP", 0)
    return found


@pytest.mark.parametrize("name", CATALOGUE)
def test_auto_is_dense_to_rounding_wherever_it_looks(name: str, looks: list[Any]) -> None:
    f, x = CATALOGUE[name]
    close(hesse.jacobian(f, x).jacobian, rows_of(f, x))
    close(hesse.jacobian(f, x, layout="sparse").jacobian.to_dense(), rows_of(f, x))


@pytest.mark.parametrize("name", SCALARS)
def test_auto_hessians_are_dense_to_rounding_wherever_it_looks(name: str, looks: list[Any]) -> None:
    f, x = SCALARS[name]
    close(hesse.hessian(f, x).hessian, hessian_of(f, x))
    close(hesse.hessian(f, x, layout="sparse").hessian.to_dense(), hessian_of(f, x))


def test_auto_looks_at_what_is_sparse_and_not_at_what_is_dense(looks: list[Any]) -> None:
    hesse.jacobian(burgers, draw(60))
    assert [found.pattern.nnz for found in looks] == [60 * 3 - 2]
    weight = draw(60, 60)
    hesse.jacobian(lambda x: torch.tanh(weight @ x), draw(60))
    hesse.jacobian(lambda x: torch.softmax(x, 0), draw(60))
    assert len(looks) == 1


def test_small_matrices_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("looked")

    monkeypatch.setattr(module, "_look", never)
    monkeypatch.setattr(module, "_can_be_sparse", never)
    hesse.jacobian(burgers, draw(199))
    hesse.hessian(lambda x: (x**3).sum(), draw(199))
    hesse.jacobian(lambda x: x[:3] ** 2, draw(5000))
    with pytest.raises(AssertionError, match="looked"):
        hesse.jacobian(burgers, draw(200))


def test_a_large_jacobian_is_found_sparse() -> None:
    x = draw(3000)
    found = hesse.jacobian(burgers, x).jacobian
    band = torch.ones(3000, 3000, dtype=torch.bool).triu(-1).tril(1)
    assert not bool(found[~band].any())
    close(found.diagonal(1), -x[:-1] + 0.01)
    close(found.diagonal(-1), x[1:] + 0.01)


def test_a_second_run_changes_nothing(looks: list[Any]) -> None:
    norm = nn.BatchNorm1d(4).double()
    counter = torch.zeros(())

    def writes(x: Tensor) -> Tensor:
        counter.add_(1)
        return x * norm(x.view(5, 4)).detach().flatten()

    before = norm.running_mean.clone()  # pyright: ignore
    hesse.jacobian(writes, draw(20), structure="dense")
    once = norm.running_mean.clone()  # pyright: ignore
    assert not torch.equal(before, once)
    norm.running_mean.copy_(before)  # pyright: ignore
    counter.zero_()
    hesse.jacobian(writes, draw(20))
    assert looks == [None]
    assert float(counter) == 1
    assert torch.equal(once, norm.running_mean)  # pyright: ignore

    def draws(x: Tensor) -> Tensor:
        return x * torch.rand(20, dtype=D)

    torch.manual_seed(3)
    first = hesse.jacobian(draws, draw(20), structure="dense").jacobian
    state = torch.get_rng_state()
    torch.manual_seed(3)
    second = hesse.jacobian(draws, draw(20)).jacobian
    assert looks == [None, None]
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())


def test_terms_that_cancel_are_no_wrong_entries() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).double()
    x = torch.rand(3, 4, 8, dtype=D)

    def f(t: Tensor) -> Tensor:
        return (layer(t) ** 2).sum()  # a constant, but for the eps of the normalization

    found = hesse.hessian(f, x, structure="sparse").hessian
    torch.testing.assert_close(found, hesse.hessian(f, x, structure="dense").hessian, rtol=1e-8, atol=1e-12)


def test_random_functions() -> None:
    x = draw(20)

    def f(t: Tensor) -> Tensor:
        return t * torch.rand(20, dtype=D)

    torch.manual_seed(3)
    first = hesse.jacobian(f, x, structure="dense").jacobian
    state = torch.get_rng_state()
    torch.manual_seed(3)
    second = hesse.jacobian(f, x, structure="sparse").jacobian
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(StructureError, match="the pattern gives 0"):  # the mask of the second run is another one
        hesse.jacobian(lambda t: torch.where(torch.rand(20) > 0.5, t, 0), x, structure="sparse")


def test_a_function_that_will_not_run_twice_is_dense(looks: list[Any]) -> None:
    runs = []

    def f(x: Tensor) -> Tensor:
        runs.append(1)
        if len(runs) > 1:
            raise ValueError("once only")
        return x**2

    close(hesse.jacobian(f, draw(20), mode="reverse").jacobian, torch.diag(2 * draw(20)))
    assert looks == [None]


def test_a_pattern_that_is_wrong_falls_to_dense_or_is_refused(monkeypatch: pytest.MonkeyPatch, looks: list[Any]) -> None:
    import hesse.sparse.detect as detect

    original = detect.found_within

    def wrong(*args: Any, **options: Any) -> Any:
        from dataclasses import replace

        from hesse.sparse import Pattern

        found = original(*args, **options)
        return replace(found, pattern=Pattern.of(torch.eye(30, dtype=torch.bool)))

    monkeypatch.setattr(detect, "found_within", wrong)
    x = draw(30)
    close(hesse.jacobian(burgers, x).jacobian, rows_of(burgers, x))
    assert len(looks) == 1
    with pytest.raises(StructureError, match="the pattern gives 0"):
        hesse.jacobian(burgers, x, structure="sparse")


def test_results_are_differentiable_with_respect_to_what_is_upstream(looks: list[Any]) -> None:
    x, scale = draw(12).requires_grad_(), draw().requires_grad_()

    def f(t: Tensor) -> Tensor:
        return scale * burgers(t) ** 2

    weights = draw(12, 12, seed=4)
    for options in ({"structure": "sparse"}, {"structure": "sparse", "mode": "forward"}, {}):
        found = hesse.jacobian(f, x, **options).jacobian  # pyright: ignore
        grads = torch.autograd.grad((found * weights).sum(), (x, scale))
        expected = torch.func.grad(
            lambda t, s: (torch.func.jacrev(lambda u: s * burgers(u) ** 2)(t) * weights).sum(), argnums=(0, 1)
        )(x.detach(), scale.detach())
        for a, b in zip(grads, expected, strict=True):
            close(a, b)
    h = hesse.hessian(lambda t: (scale * t**4).sum(), x, structure="sparse").hessian
    close(torch.autograd.grad(h.sum(), x)[0], 24 * scale.detach() * x.detach())
    with torch.no_grad():
        assert not hesse.jacobian(f, x, structure="sparse").jacobian.requires_grad
    tensor = hesse.jacobian(f, x, structure="sparse", layout="sparse").jacobian
    assert torch.autograd.grad(tensor.values().sum(), scale)[0].isfinite()


def test_inside_transforms_auto_is_as_before_and_sparse_is_refused(looks: list[Any]) -> None:
    x = draw(3, 10)
    found = torch.func.vmap(lambda t: hesse.jacobian(burgers, t).jacobian)(x)
    close(found, torch.stack([rows_of(burgers, t) for t in x]))
    assert not looks
    with pytest.raises(UnsupportedError, match="prepare it outside"):
        torch.func.vmap(lambda t: hesse.jacobian(burgers, t, structure="sparse").jacobian)(x)


def test_complex_numbers(looks: list[Any]) -> None:
    z = torch.randn(9, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    close(hesse.jacobian(lambda t: t**2, z).jacobian, torch.diag(2 * z))
    close(hesse.jacobian(lambda t: t**2, z, layout="sparse").jacobian.to_dense(), torch.diag(2 * z))
    assert not looks
    close(hesse.jacobian(lambda t: t * (1 + 2j), draw(9)).jacobian, torch.eye(9) * (1 + 2j) + 0 * torch.diag(z))
    eye = torch.eye(9) * (1 + 2j) + 0 * torch.diag(z)
    close(hesse.jacobian(lambda t: t * (1 + 2j), draw(9), layout="sparse").jacobian.to_dense(), eye)
    for point in (z, draw(9)):
        with pytest.raises(UnsupportedError, match="view_as_real"):
            hesse.jacobian(lambda t: t * (1 + 2j), point, structure="sparse")


def test_every_structure_has_the_sparse_layout() -> None:
    weight = draw(3, 2)

    def f(t: Tensor) -> Tensor:
        return torch.tanh(t @ weight).reshape(len(t), 1, 2)

    x = draw(5, 3)
    expected = rows_of(f, x)
    for structure in ("auto", "dense", "batched", "sparse"):
        found = hesse.jacobian(f, x, structure=structure, layout="sparse").jacobian  # pyright: ignore
        assert found.is_coalesced()
        close(found.to_dense(), expected)

    def g(t: Tensor) -> Tensor:
        return (t**3).sum(1)

    rows = hesse.hessian(g, x, structure="batched", layout="sparse").hessian
    assert rows._nnz() == 5 * 3 * 3
    close(rows.to_dense(), hessian_of(lambda t: g(t).sum(), x))


def test_the_structure_of_row_hessians_is_in_the_right_places() -> None:
    x = draw(4, 2, 3)
    found = hesse.hessian(lambda t: t.flatten(1).prod(1), x, structure="batched", layout="sparse").hessian
    close(found.to_dense(), hessian_of(lambda t: t.flatten(1).prod(1).sum(), x))


def test_bad_options_and_refusals() -> None:
    x = draw(6)
    with pytest.raises(StructureError, match="layout='batched' of structure='sparse'"):
        hesse.jacobian(burgers, x, structure="sparse", layout="batched")
    with pytest.raises(StructureError, match="layout='batched' of structure='sparse'"):
        hesse.hessian(lambda t: (t**2).sum(), x, structure="sparse", layout="batched")
    with pytest.raises(StructureError, match="'auto', 'dense', 'batched', 'sparse'"):
        hesse.jacobian(burgers, x, structure="coloured")  # pyright: ignore
    with pytest.raises(StructureError, match="'sparse', 'operator'"):
        hesse.jacobian(burgers, x, layout="csr")  # pyright: ignore
    with pytest.raises(MemoryBudgetError, match="sparse derivative"):
        hesse.jacobian(burgers, draw(1000), structure="sparse", layout="sparse", memory=1000)
    with pytest.raises(MemoryBudgetError, match="a dense result"):
        hesse.jacobian(burgers, draw(1000), structure="sparse", memory=1_000_000)


def test_a_small_budget_takes_the_colors_in_chunks(passes: list[int]) -> None:
    x = draw(2000)
    expected = hesse.jacobian(burgers, x, structure="sparse", layout="sparse").jacobian
    assert max(passes) == 3
    passes.clear()
    found = hesse.jacobian(burgers, x, structure="sparse", layout="sparse", memory="400KiB").jacobian
    assert max(passes) < 3
    assert sum(passes) == 3 + 1
    close(found.values(), expected.values())


def test_half_and_empty() -> None:
    x = draw(7).to(torch.float32)
    found = hesse.jacobian(burgers, x, structure="sparse").jacobian
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), rows_of(burgers, x.double()), rtol=1e-5, atol=1e-6)
    empty = hesse.jacobian(lambda t: t**2, draw(0), structure="sparse").jacobian
    assert empty.shape == (0, 0)
    assert hesse.jacobian(lambda t: t[:0] * 2, draw(3), structure="sparse", layout="sparse").jacobian.shape == (0, 3)


@pytest.mark.parametrize("name", one_way.FUNCTIONS)
def test_functions_of_the_users_with_a_reverse_mode_only(name: str) -> None:
    own, x = one_way.FUNCTIONS[name], draw(9)

    def f(t: Tensor) -> Tensor:
        return torch.cat([own(t)[1:] * t[:-1], t])

    if name == "numpy":  # no element can be followed through that
        torch.testing.assert_close(hesse.jacobian(f, x, mode="auto").jacobian, rows_of(f, x))
        return
    for mode in ("auto", "reverse"):
        torch.testing.assert_close(hesse.jacobian(f, x, structure="sparse", mode=mode).jacobian, rows_of(f, x))
    with pytest.raises(UnsupportedError, match=one_way.NAMES[name]):
        hesse.jacobian(f, x, structure="sparse", mode="forward")


def test_second_derivatives_that_a_backward_loses() -> None:
    def f(t: Tensor) -> Tensor:
        return (one_way.Once.apply(t) * t.roll(1) * t.roll(3)).sum()

    x = draw(9)
    torch.testing.assert_close(hesse.hessian(f, x).hessian, hessian_of(f, x))
    with pytest.raises(UnsupportedError, match=r"(?s)not symmetric.*the backward of Once"):
        hesse.hessian(f, x, structure="sparse")
