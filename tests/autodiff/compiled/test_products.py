"""Replayed products: those of the operator itself, under every change that a record does not stand for."""

from __future__ import annotations

import copy
import gc
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.autodiff.compiled import products
from hesse.autodiff.compiled.compile_products import compile_products
from hesse.autodiff.compiled.mode import CompileNotice
from hesse.autodiff.compiled.products import CompiledProducts
from hesse.autodiff.compiled.trace import record
from hesse.core import tree
from hesse.core.errors import DataError, StructureError
from hesse.operators.base import LinearOperator
from hesse.operators.function import Function


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(7, 5, dtype=torch.float64, generator=generator), torch.arange(7) % 3


def vectors(A: LinearOperator, *, count: int | None = None, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    lead = () if count is None else (count,)
    pairs = zip(A.in_space.shapes, A.in_space.dtypes, strict=True)
    return A.in_space.rebuild([torch.randn(*lead, *shape, dtype=dtype, generator=generator) for shape, dtype in pairs])


def warm(A: LinearOperator, *, count: int | None = None, times: int = 3) -> None:
    for seed in range(times):
        v = vectors(A, count=count, seed=100 + seed)
        A.mv(v) if count is None else A.mm(v)


def assert_same(found: Any, expected: Any, rtol: float = 1e-12) -> None:
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max() + 1e-30))


def by_loops(model: nn.Module, x: Tensor, y: Tensor, v: dict[str, Tensor]) -> dict[str, Tensor]:
    """The Hessian product by plain double backward, from the start."""
    params = list(model.parameters())
    grads = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), params, create_graph=True)
    slope = sum((g * v[name]).sum() for g, (name, _) in zip(grads, model.named_parameters(), strict=True))
    assert isinstance(slope, Tensor)
    return dict(zip(v, torch.autograd.grad(slope, params), strict=True))


@pytest.mark.parametrize("count", [None, 3])
def test_hessian_products_are_those_of_autograd(count: int | None) -> None:
    model, (x, y) = network(), batch()
    C = compile_products(hesse.loss_hessian(model, nn.CrossEntropyLoss(), (x, y)))
    assert isinstance(C, CompiledProducts)
    warm(C, count=count)
    assert C.replays == 0
    assert C.compile_seconds > 0
    for seed in range(3):
        v = vectors(C, count=count, seed=seed)
        found = C.mv(v) if count is None else C.mm(v)
        for k in range(count or 1):
            one = v if count is None else {name: part[k] for name, part in v.items()}
            assert_same(found if count is None else {name: part[k] for name, part in found.items()}, by_loops(model, x, y, one))
    assert C.replays == 3
    assert not C.direct


def operators() -> Iterator[tuple[str, LinearOperator]]:
    model, (x, y), loss = network(), batch(), nn.CrossEntropyLoss()
    f, params = hesse.functional(model)
    J = hesse.linearize(lambda p: f(p, x), params).jacobian
    H = hesse.loss_hessian(model, loss, (x, y))
    yield from {
        "ggn": hesse.ggn(model, loss, (x, y)),
        "sampled": hesse.fisher(model, loss, (x, y), kind="sampled"),
        "empirical": hesse.fisher(model, loss, (x, y), kind="empirical"),
        "rows": hesse.parameter_jacobian(model, loss, (x, y)),
        "pushed": J,
        "pulled": J.T,
        "damped": 2.0 * H + 0.5 * hesse.identity(H.in_space),
        "inputs": hesse.input_hessian(model, loss, (x, y)),
        "complex": hesse.linearize(lambda z: z * z.sum(), torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128)).jacobian,
        "identity": hesse.identity(H.in_space),
    }.items()


@pytest.mark.filterwarnings("ignore::hesse.autodiff.compiled.mode.CompileNotice")
@pytest.mark.parametrize(("name", "A"), list(operators()), ids=[name for name, _ in operators()])
def test_every_operator(name: str, A: LinearOperator) -> None:
    C = compile_products(A)
    assert isinstance(C, CompiledProducts)
    assert (C.in_space, C.out_space, C.tags, C.mass) == (A.in_space, A.out_space, A.tags, A.mass)
    for side, direct in ((C, A), (C.T, A.T)):
        assert isinstance(side, CompiledProducts)
        for count in (None, 2):
            warm(side, count=count)
            v, before = vectors(side, count=count), side.replays
            assert_same(side.mv(v) if count is None else side.mm(v), direct.mv(v) if count is None else direct.mm(v))
            runs_the_function = name == "complex" and side is C  # forward mode
            assert side.replays == before + (not runs_the_function)


def test_strides_and_dtypes_of_vectors_do_not_matter() -> None:
    A = hesse.loss_hessian(network(), nn.CrossEntropyLoss(), batch())
    C = compile_products(A)
    warm(C)
    v = vectors(A)
    turned = {name: part.t().contiguous().t() if part.ndim == 2 else part for name, part in v.items()}
    assert_same(C.mv(turned), A.mv(v))
    single = {name: part.float() for name, part in v.items()}
    assert_same(C.mv(single), A.mv({name: part.double() for name, part in single.items()}))


def test_results_are_new_tensors() -> None:
    C = compile_products(hesse.loss_hessian(network(), nn.CrossEntropyLoss(), batch()))
    warm(C)
    first = C.mv(vectors(C, seed=1))
    before = [leaf.clone() for leaf in tree.leaves(first)]
    second = C.mv(vectors(C, seed=2))
    assert_same(first, dict(zip(first, before, strict=True)))
    for leaf in tree.leaves(second):
        leaf.zero_()
    assert_same(C.mv(vectors(C, seed=1)), first)


@pytest.mark.parametrize("what", ["parameter", "input"])
def test_a_tensor_changed_in_place_is_never_answered_from_the_record(what: str) -> None:
    model, (x, y) = network(), batch()
    C = compile_products(hesse.loss_hessian(model, nn.CrossEntropyLoss(), (x, y)))
    warm(C, times=4)
    with torch.no_grad():
        (next(model.parameters()) if what == "parameter" else x).mul_(1.5)
    with pytest.raises(DataError, match="changed in place"):
        C.mv(vectors(C))
    assert isinstance(C, CompiledProducts)
    assert C.replays == 1


def test_a_changed_point_of_a_linearization_is_refused_by_autograd() -> None:
    x = torch.tensor([0.3, -0.4], dtype=torch.float64)
    scale = torch.tensor([2.0, 3.0], dtype=torch.float64)
    C = compile_products(hesse.linearize(lambda p: (scale * p).sin(), x).jacobian.T)
    warm(C, times=4)
    scale.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        C.mv(vectors(C))


def test_data_sets_run_directly_and_see_new_batches() -> None:
    model, (x, y) = network(), batch()
    data = [(x[:4], y[:4]), (x[4:], y[4:])]
    A = hesse.ggn(model, nn.CrossEntropyLoss(), data, data_check=False)
    C = compile_products(A)
    with pytest.warns(CompileNotice, match="goes through a data set"):
        warm(C)
    data[1] = (x[4:] * 2, y[4:])
    v = vectors(C)
    assert_same(C.mv(v), hesse.ggn(model, nn.CrossEntropyLoss(), data).mv(v))
    assert isinstance(C, CompiledProducts)
    assert C.replays == 0
    assert "data set" in C.direct


def test_code_of_the_user_runs_directly() -> None:
    factor = [2.0]

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return x * 1.0

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return g * factor[0]

    def scaled(x: Tensor) -> Any:
        return Scale.apply(x)

    C = compile_products(hesse.linearize(scaled, torch.ones(3, dtype=torch.float64)).jacobian.T)
    with pytest.warns(CompileNotice, match="runs Python code of yours: backward"):
        warm(C)
    factor[0] = 5.0
    assert C.mv(torch.ones(3)).tolist() == [5.0, 5.0, 5.0]


def test_products_that_are_differentiated_run_directly() -> None:
    A = hesse.loss_hessian(network(), nn.CrossEntropyLoss(), batch())
    C = compile_products(A)
    warm(C)
    v = {name: part.requires_grad_() for name, part in vectors(C).items()}
    out = sum(part.square().sum() for part in C.mv(v).values())
    assert isinstance(out, Tensor)
    found = torch.autograd.grad(out, list(v.values()))
    plain = {name: part.detach() for name, part in v.items()}
    assert_same(list(found), [2 * part for part in A.mv(A.mv(plain)).values()])


def test_a_product_that_follows_what_it_was_made_from_stays_differentiable() -> None:
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    C = compile_products(hesse.hessian_operator(lambda p: scale * (p**3).sum(), torch.ones(3, dtype=torch.float64)))
    with torch.no_grad():
        warm(C, times=4)
    with pytest.warns(CompileNotice, match="can be differentiated by what it was made from"):
        warm(C)
    v = torch.arange(3.0, dtype=torch.float64)
    (slope,) = torch.autograd.grad(C.mv(v).sum(), scale)
    assert slope == 6 * v.sum()


def test_inside_a_transform() -> None:
    A = hesse.loss_hessian(network(), nn.CrossEntropyLoss(), batch())
    C = compile_products(A)
    warm(C)
    V = vectors(C, count=2)
    assert_same(torch.func.vmap(C.mv)(V), A.mm(V))


def test_autocast_is_another_kind() -> None:
    A = hesse.linearize(lambda p: p @ p, torch.eye(3) + 0.1).jacobian
    C = compile_products(A)
    warm(C)
    v = vectors(C)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(C.mv(v), A.mv(v), rtol=0)
    assert isinstance(C, CompiledProducts)
    assert C.replays == 0


def test_threads_share_a_record() -> None:
    A = hesse.loss_hessian(network(), nn.CrossEntropyLoss(), batch())
    C = compile_products(A)
    warm(C)
    expected = [A.mv(vectors(C, seed=seed)) for seed in range(4)]
    wrong: list[int] = []

    def check(seed: int) -> None:
        for _ in range(20):
            found = C.mv(vectors(C, seed=seed))
            if any((a - b).abs().max() > 1e-12 for a, b in zip(found.values(), expected[seed].values(), strict=True)):
                wrong.append(seed)

    threads = [threading.Thread(target=check, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_questions_and_solvers_take_it() -> None:
    model, (x, y) = network(), batch()
    G = hesse.ggn(model, nn.CrossEntropyLoss(), (x, y)) + 0.1 * hesse.identity(hesse.Space.of(dict(model.named_parameters())))
    C = compile_products(G)
    dense = hesse.dense(G)
    torch.testing.assert_close(hesse.dense(C), dense, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(hesse.diagonal(C), dense.diagonal(), rtol=1e-12, atol=1e-14)
    assert float(hesse.trace(C)) == pytest.approx(float(dense.trace()), rel=1e-12)
    b = vectors(C)
    solved = G.in_space.ravel(hesse.solve(C, b, method="cg"))
    torch.testing.assert_close(solved, torch.linalg.solve(dense, G.in_space.ravel(b)), rtol=1e-4, atol=1e-6)
    assert isinstance(C, CompiledProducts)
    assert C.replays > 0


def test_native() -> None:
    model, (x, y) = network(), batch()
    C = compile_products(hesse.loss_hessian(model, nn.CrossEntropyLoss(), (x, y)), compile="native")
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        warm(C)
    refused = [str(notice.message) for notice in notices if issubclass(notice.category, UserWarning)]
    assert all("C++ compiler" in text for text in refused), refused
    v = vectors(C)
    assert_same(C.mv(v), by_loops(model, x, y, v))
    turned = {name: part.t().contiguous().t() if part.ndim == 2 else part for name, part in v.items()}
    assert_same(C.mv(turned), by_loops(model, x, y, v))
    assert isinstance(C, CompiledProducts)
    assert C.replays == 2


def test_native_pooled_and_normalized_convolution() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.GELU(), nn.MaxPool2d(2), nn.Flatten())
    model = model.append(nn.Linear(48, 4)).eval()
    x, y = torch.randn(6, 1, 8, 8), torch.arange(6) % 4
    C = compile_products(hesse.loss_hessian(model, nn.CrossEntropyLoss(), (x, y)), compile="native")
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        warm(C)
    refused = [str(notice.message) for notice in notices if issubclass(notice.category, CompileNotice)]
    assert all("C++ compiler" in text for text in refused), refused
    v, exact = vectors(C), copy.deepcopy(model).double()
    wanted = by_loops(exact, x.double(), y, {name: part.double() for name, part in v.items()})
    assert_same({name: part.double() for name, part in C.mv(v).items()}, wanted, 1e-4)


def test_off_is_the_operator_itself_and_unknown_ways_are_refused() -> None:
    A = hesse.identity(hesse.Space.of(torch.ones(2)))
    assert compile_products(A, compile="off") is A
    with pytest.raises(StructureError, match="choose one of"):
        compile_products(A, compile="fast")  # pyright: ignore[reportArgumentType]
    with pytest.raises(StructureError, match="pass an operator"):
        compile_products(torch.ones(2))  # pyright: ignore[reportArgumentType]


def test_an_operator_that_runs_a_module_runs_directly() -> None:
    layer = nn.Dropout(0.5).eval()
    space = hesse.Space.of(torch.ones(3))
    C = compile_products(Function(space, space, layer, layer))
    with pytest.warns(CompileNotice, match="runs the model again"):
        warm(C)
    layer.train()
    assert set(C.mv(torch.ones(3)).tolist()) <= {0.0, 2.0}
    assert isinstance(C, CompiledProducts)
    assert C.replays == 0


def test_a_finalizer_that_runs_meanwhile_is_no_part_of_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def finalizer() -> None:
        calls.append(1)

    def recorded(*args: Any) -> Any:
        if not calls:
            finalizer()
        return record(*args)

    monkeypatch.setattr(products, "record", recorded)
    monkeypatch.setattr(recorded, "__code__", recorded.__code__.replace(co_filename=products.__file__))
    C = compile_products(hesse.loss_hessian(network(), nn.CrossEntropyLoss(), batch()))
    warm(C, times=4)
    assert isinstance(C, CompiledProducts)
    assert calls == [1]
    assert C.replays == 1


def test_callbacks_of_collections_are_no_part_of_the_product() -> None:
    def callback(phase: str, info: dict[str, int]) -> None:
        assert phase in ("start", "stop") and info

    threshold = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(1, 1, 1)
    try:
        C = compile_products(hesse.loss_hessian(network(), nn.CrossEntropyLoss(), batch()))
        warm(C, times=4)
        assert gc.isenabled()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(callback)
    assert isinstance(C, CompiledProducts) and C.replays == 1 and not C.direct


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy])
def test_a_copy_records_anew(way: Any) -> None:
    matrix = torch.randn(4, 3, dtype=torch.float64)
    A = compile_products(hesse.operators.Dense(matrix), compile="replay")
    warm(A)
    made = way(A)
    assert isinstance(made, CompiledProducts) and made.replays == 0
    warm(made, times=5)
    assert made.replays > 0
    v = vectors(A)
    assert_same(made.mv(v), matrix @ v)
