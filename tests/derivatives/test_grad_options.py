"""The flags of `hesse.grad`: forward only, gradients only, cotangents, stable gradients, profile, hook, compile."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor

import hesse
from hesse.autodiff.compiled.mode import CompileNotice, compiling, default_mode
from hesse.autodiff.stable import ResizedGradientWarning
from hesse.core import tree
from hesse.core.errors import HesseError, StructureError, UnsupportedError
from hesse.derivatives.grad import GradResult, grad

from .test_grad import Pair, normal


def f(p: dict[str, Tensor], x: Tensor) -> Any:
    return (p["w"] * x).exp().sum(), x.sum()


P, X = {"w": normal(4)}, normal(4, seed=1)


def test_forward_only_gives_what_the_function_gives() -> None:
    out = Pair(1, [X])
    assert grad(lambda p: out, with_gradients=False)(P) is out
    own = {"w": P["w"].clone().requires_grad_()}
    assert grad(f, with_gradients=False)(own, X)[0].requires_grad


def test_gradients_only() -> None:
    grads = grad(f, with_forward=False)(P, X)
    assert type(grads) is dict
    torch.testing.assert_close(grads["w"], X * (P["w"] * X).exp())
    both = grad(lambda a, b: a @ b, (0, 1), with_forward=False)(P["w"], X)
    assert type(both) is tuple and torch.equal(both[0], X) and torch.equal(both[1], P["w"])


def jacobian_by_hand(g: Any, x: Tensor) -> Tensor:
    own = x.clone().requires_grad_()
    y = g(own)
    return torch.stack([torch.autograd.grad(v, own, retain_graph=True)[0] for v in y.flatten()])


def test_a_cotangent_gives_the_vector_jacobian_product() -> None:
    a = normal(3, 4, seed=2)

    def g(x: Tensor) -> Tensor:
        return torch.sin(a @ x)

    u = normal(3, seed=3)
    result = grad(lambda x: (g(x), "extra"), partial_grad=True)(X, u)
    torch.testing.assert_close(result.grads, jacobian_by_hand(g, X).T @ u, rtol=1e-13, atol=1e-13)
    assert torch.equal(result.value, g(X)) and result.extras == ("extra",)
    single = grad(lambda x: g(x), partial_grad=True)(X, u.float())
    assert single.grads.dtype == torch.float64 and result.grads is not u


def test_cotangents_of_trees_and_of_values_that_do_not_depend() -> None:
    def g(x: Tensor, scale: float) -> Any:
        return {"a": scale * x[:2], "b": [x.prod(), torch.ones(3)]}

    u = {"a": normal(2), "b": [2.0, torch.ones(3)]}
    grads = grad(g, partial_grad=True)(X, 3.0, u).grads
    expected = 2 * X.prod() / X + torch.cat([3 * u["a"], torch.zeros(2)])
    torch.testing.assert_close(grads, expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(grad(lambda x: x, partial_grad=True)(X, X).grads, X)
    cotangent = normal(4, seed=5)
    grad(lambda x: x, partial_grad=True)(X, cotangent).grads.zero_()
    assert torch.equal(cotangent, normal(4, seed=5))


def test_complex_cotangents_follow_pytorch() -> None:
    z, u = torch.complex(normal(3), normal(3, seed=1)), torch.complex(normal(3, seed=2), normal(3, seed=3))
    torch.testing.assert_close(grad(lambda z: z**3, partial_grad=True)(z, u).grads, (3 * z**2).conj() * u)


def test_products_are_differentiable_by_the_cotangent() -> None:
    u = normal(3, seed=3)
    df = grad(lambda x: torch.stack([x[0] * x[1], x[2] ** 2, x.sum()]), partial_grad=True)
    w = normal(4, seed=7)
    jacobian = jacobian_by_hand(lambda x: torch.stack([x[0] * x[1], x[2] ** 2, x.sum()]), X)
    torch.testing.assert_close(grad(lambda u: df(X, u).grads @ w)(u).grads, jacobian @ w, rtol=1e-13, atol=1e-13)


def test_cotangents_that_do_not_fit() -> None:
    df = grad(lambda x: {"a": x[:2], "b": x[0]}, partial_grad=True)
    with pytest.raises(StructureError, match="'a'"):
        df(X, {"a": normal(3), "b": 1.0})
    with pytest.raises(StructureError, match="c"):
        df(X, {"a": normal(2), "c": 1.0})
    for args in ((X,), (X, None)):
        with pytest.raises(StructureError, match=r"df\(params, \.\.\., cotangent\)"):
            df(*args)


def test_stable_gradients_are_the_same_objects() -> None:
    df = grad(f, stable_gradients=True)
    first = df(P, X).grads["w"]
    other = {"w": normal(4, seed=6)}
    second = df(other, X).grads["w"]
    assert second is first
    torch.testing.assert_close(first, X * (other["w"] * X).exp())
    with pytest.warns(ResizedGradientWarning, match=r"'w' got shape \(2,\) instead of \(4,\)"):
        third = df({"w": normal(2)}, normal(2, seed=1)).grads["w"]
    assert third is first and first.shape == (2,)
    torch.testing.assert_close(first, normal(2, seed=1) * (normal(2) * normal(2, seed=1)).exp())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert df(P, X).grads["w"].shape == (4,)


def test_stable_gradients_of_another_structure_are_refused() -> None:
    df = grad(lambda p: sum(v.sum() for v in p.values()), stable_gradients=True)
    df({"a": X, "b": X})
    with pytest.raises(StructureError, match="missing: b; new: c"):
        df({"a": X, "c": X})
    with pytest.raises(StructureError, match="another order"):
        df({"b": X, "a": X})
    with pytest.raises(StructureError, match=r"torch\.float32.*'b'.*torch\.float64"):
        df({"a": X, "b": X.float()})
    with pytest.raises(UnsupportedError, match="differentiated further"):
        df({"a": X, "b": X.clone().requires_grad_()})


def test_each_thread_has_stable_gradients_of_its_own() -> None:
    df, found = grad(f, stable_gradients=True), {}

    def work(seed: int) -> None:
        found[seed] = [df({"w": normal(4, seed=seed)}, X).grads["w"] for _ in range(5)]

    threads = [threading.Thread(target=work, args=(s,)) for s in (1, 2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for seed, grads in found.items():
        assert all(g is grads[0] for g in grads)
        torch.testing.assert_close(grads[0], X * (normal(4, seed=seed) * X).exp())
    assert found[1][0] is not found[2][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"with_forward": False, "with_gradients": False}, "leave nothing"),
        ({"partial_grad": True, "with_gradients": False}, "partial_grad=True with with_gradients=False"),
        ({"stable_gradients": True, "with_gradients": False}, "stable_gradients=True with"),
        ({"argnums": True}, "argnums=True"),
        ({"argnums": ()}, r"argnums=\(\)"),
        ({"argnums": (0, 0)}, "different"),
        ({"compile": "fast"}, "'fast'.*\n.*'off', 'replay', 'native'"),
        ({"profile": True}, "profile=True"),
        ({"signature": "abc"}, "signature is a str"),
        ({"debug_hook": 3}, "debug_hook is a int"),
        ({"with_forward": 1}, "with_forward=1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HesseError, match=message):
        grad(f, **options)


def test_positions_that_are_not_there() -> None:
    for argnums in (2, -3, (0, -2)):
        with pytest.raises(StructureError, match="in a call of 2 positional arguments"):
            grad(f, argnums)(P, X)


def test_the_report_of_direct_calls() -> None:
    df = grad(f, profile="summary")
    df(P, X)
    df(P, X)
    assert df.report().calls == 2
    with pytest.raises(UnsupportedError, match="without a profile"):
        grad(f).report()
    detailed = grad(f, profile="detailed")
    detailed(P, X)
    assert "exp" in str(detailed.report())


def test_the_hook_sees_what_is_not_finite() -> None:
    seen: list[Any] = []
    result = grad(lambda x: (x - x).sqrt().sum(), debug_hook=seen.append)(X)
    assert not result.grads.isfinite().all() and seen


def test_compiling_sets_the_default_of_a_thread() -> None:
    assert default_mode() == "off"
    with hesse.autodiff.compiled.mode.compiling("replay") as context:
        assert default_mode() == "replay"
        with compiling("native"):
            assert default_mode() == "native"
        found: list[str] = []
        other = threading.Thread(target=lambda: found.append(default_mode()))
        other.start()
        other.join()
        assert default_mode() == "replay" and found == ["off"]
    assert default_mode() == "off"
    with context:
        assert default_mode() == "replay"
    assert default_mode() == "off"
    compiling("replay")
    assert default_mode() == "replay"
    compiling("off")
    with pytest.raises(StructureError, match="'fast'"):
        compiling("fast")  # pyright: ignore[reportArgumentType]
    assert default_mode() == "off"


@pytest.mark.parametrize("argnums", [0, (0,), (0, 1), -1])
@pytest.mark.parametrize("mode", ["off", "replay"])
def test_compiled_calls_give_what_direct_ones_give(argnums: Any, mode: Any) -> None:
    def g(p: Any, q: Tensor) -> Any:
        return (p["w"] * q).exp().sum() * p["t"], q.sum(), "text"

    direct = grad(lambda p, q: g(p, q), argnums)({"w": X, "t": 2.0}, P["w"])
    df = grad(g, argnums, compile=mode)
    for _ in range(3):
        result = df({"w": X, "t": 2.0}, P["w"])
        assert type(result) is GradResult
        torch.testing.assert_close(tuple(result)[:-1], tuple(direct)[:-1], rtol=1e-12, atol=1e-12)
        assert result.extras[-1] == "text"
    again = df({"w": X, "t": 3.0}, P["w"])
    torch.testing.assert_close(again.value, 1.5 * direct.value, rtol=1e-6, atol=1e-6)


def test_compiled_gradients_have_the_structure_of_each_call() -> None:
    def g(p: Any, scale: float) -> Any:
        (w, t), rest = p["a"], p["b"]
        return scale * (w * t).square().sum() * rest[0].sum(), w * 1

    df = grad(g, compile="replay")
    trees = [
        {"a": (X, 2.0), "b": [X[0], None]},
        {"a": (X, X[0]), "b": [X[0], "s"]},
        {"a": [X, 2.0], "b": OrderedDict({0: X[0]})},
    ]
    for params in (*trees, *trees[::-1]):
        for _ in range(2):
            result, direct = df(params, 0.5), grad(g)(params, 0.5)
            torch.testing.assert_close(tree.leaves(result.grads), tree.leaves(direct.grads), rtol=1e-13, atol=1e-13)
            assert type(result.grads["a"]) is type(params["a"]) and type(result.grads["b"]) is type(params["b"])
            assert type(result.grads["a"][1]) is type(params["a"][1]) and torch.equal(result.extras[0], X)
            assert len(params["b"]) == 1 or result.grads["b"][1] == params["b"][1]


def test_compiled_results_are_attached_where_direct_ones_are() -> None:
    w = normal(4).requires_grad_()
    df = grad(lambda x: ((w * x) ** 3).sum(), compile="replay")
    for _ in range(3):
        with torch.no_grad():
            assert not df(X).grads.requires_grad
        assert df(X).grads.requires_grad
    double = grad(lambda x: df(x).grads.square().sum(), compile="replay")
    with torch.no_grad():
        torch.testing.assert_close(double(X).grads, 36 * w.detach() ** 6 * X**3, rtol=1e-12, atol=1e-12)


def test_a_compiled_call_whose_result_is_attached_runs_once_and_says_so() -> None:
    layer = torch.nn.BatchNorm1d(2).double()
    x = torch.randn(5, 2, dtype=torch.float64)

    def f(p: torch.Tensor) -> torch.Tensor:
        return (layer(x * p) ** 3).sum()

    df = hesse.grad(f, compile="replay")
    p = torch.tensor([1.0, 2.0], dtype=torch.float64)
    with pytest.warns(CompileNotice, match="closes over requires grad"):
        found = df(p).grads
    assert layer.num_batches_tracked.item() == 1
    (second,) = torch.autograd.grad(found.sum(), layer.weight)
    q = p.clone().requires_grad_()
    (first,) = torch.autograd.grad((layer(x * q) ** 3).sum(), q, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(first.sum(), layer.weight)[0], rtol=1e-10, atol=1e-12)


def test_parameters_that_require_grad_run_directly_with_a_notice() -> None:
    df, p = hesse.grad(lambda p: (p**3).sum(), compile="replay"), torch.ones(2, requires_grad=True)
    with pytest.warns(CompileNotice, match="no_grad"):
        found = df(p).grads
    assert torch.autograd.grad(found.sum(), p)[0].tolist() == [6.0, 6.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        df(p)
        with torch.no_grad():
            assert not df(p).grads.requires_grad
