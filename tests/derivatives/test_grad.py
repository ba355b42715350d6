"""`hesse.grad` in direct mode: structures, outputs, semantics; against plain autograd and closed forms in float64."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import threading
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor

import hesse
from hesse.derivatives.grad import GradFunction, GradResult, grad

Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass
class Layer:
    weight: Tensor
    bias: Any
    name: str = "layer"
    width: int = 3


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def by_hand(f: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Gradients by autograd of a function of tensors."""
    own = [t.clone().requires_grad_() for t in tensors]
    return torch.autograd.grad(f(*own), own)


def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x @ p["w"].T + p["b"]).square().sum()


@pytest.fixture
def params() -> dict[str, Tensor]:
    return {"w": normal(3, 5), "b": normal(3, seed=1)}


X = normal(7, 5, seed=2)


def test_gradients_and_value_of_a_dict(params: dict[str, Tensor]) -> None:
    result = grad(loss)(params, X)
    gw, gb = by_hand(lambda w, b: torch.tanh(X @ w.T + b).square().sum(), params["w"], params["b"])
    assert isinstance(result, GradResult) and list(result.grads) == ["w", "b"]
    torch.testing.assert_close(result.grads, {"w": gw, "b": gb}, rtol=1e-13, atol=1e-13)
    assert result.value == loss(params, X) and result.extras == ()
    grads, value = result
    assert grads is result.grads and value is result.value
    assert not value.requires_grad and not grads["w"].requires_grad


def test_every_kind_of_container() -> None:
    w, b, s = normal(3, 5), normal(3, seed=1), normal(2, seed=3)
    params = [{"a": Pair(w, 2.0), "skip": None}, (Layer(b, s), "text", 4), OrderedDict(z=normal(seed=4)), True]

    def f(p: Any) -> Tensor:
        first, (layer, _, number), third, _ = p
        return (
            number * (first["a"].left.T @ layer.weight).square().sum() * first["a"].right ** 3 + layer.bias.prod() * third["z"]
        )

    grads = grad(f)(params).grads
    gw, gb = by_hand(lambda w, b: 4 * (w.T @ b).square().sum() * 8, w, b)
    size = float((w.T @ b).square().sum())
    assert type(grads) is list and type(grads[0]["a"]) is Pair and type(grads[1][0]) is Layer and type(grads[2]) is OrderedDict
    torch.testing.assert_close(grads[0]["a"].left, gw, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(grads[1][0].weight, gb, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(grads[1][0].bias, s.flip(0) * params[2]["z"])
    assert type(grads[0]["a"].right) is float and math.isclose(grads[0]["a"].right, 4 * size * 12, rel_tol=1e-13)
    assert grads[0]["skip"] is None and grads[1][1:] == ("text", 4) and grads[3] is True
    assert grads[1][0].name == "layer" and grads[1][0].width == 3


def test_bare_tensor_float_and_complex_number() -> None:
    assert torch.equal(grad(lambda x: x @ x)(X[0]).grads, 2 * X[0])
    result = grad(lambda t: t**3)(2.0)
    assert type(result.grads) is float and result.grads == 12.0 and result.value == 8.0
    number = grad(lambda z: (z * z.conj()).real)(3 + 4j).grads
    assert type(number) is complex and number == 6 + 8j


def test_complex_leaves_follow_pytorch() -> None:
    z = torch.complex(normal(4), normal(4, seed=1))
    expected = by_hand(lambda z: (z**3).abs().sum(), z)[0]
    torch.testing.assert_close(grad(lambda z: (z**3).abs().sum())(z).grads, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(grad(lambda z: z.abs().square().sum())(z).grads, 2 * z)


def test_every_output_comes_through(params: dict[str, Tensor]) -> None:
    label, thing = torch.arange(3), object()

    def f(p: Any) -> Any:
        return p["w"].sum(), {"b": p["b"] * 2, "none": None}, label, "text", thing, [p["w"][0]], None

    result = grad(f)(params)
    assert result.extras[1] is label and result.extras[2:4] == ("text", thing) and result.extras[5] is None
    assert torch.equal(result.extras[0]["b"], params["b"] * 2) and torch.equal(result.extras[4][0], params["w"][0])
    assert not result.extras[0]["b"].requires_grad and not result.extras[4][0].requires_grad
    assert len(result) == 8


def test_named_tuples_are_unpacked_lists_are_values() -> None:
    assert grad(lambda x: Pair(x.sum(), x))(X).extras[0].shape == X.shape
    with pytest.raises(hesse.HesseError, match="returned list of 2 tensors"):
        grad(lambda x: [x.sum(), x.sum()])(X)
    with pytest.raises(hesse.HesseError, match="returned dict"):
        grad(lambda x: {"loss": x.sum()})(X)


def test_argnums(params: dict[str, Tensor]) -> None:
    def f(a: Tensor, b: Tensor, *, scale: float = 1.0) -> Tensor:
        return scale * (a * b.exp()).sum()

    a, b = normal(4), normal(4, seed=1)
    torch.testing.assert_close(grad(f, 1)(a, b, scale=3.0).grads, 3 * a * b.exp())
    torch.testing.assert_close(grad(f, -1)(a, b).grads, a * b.exp())
    both = grad(f, (1, 0))(a, b).grads
    assert type(both) is tuple
    torch.testing.assert_close(both, (a * b.exp(), b.exp()))
    one = grad(f, (0,))(a, b).grads
    assert type(one) is tuple and len(one) == 1


def test_unused_leaves_are_zero_and_aliased_ones_are_apart() -> None:
    x = normal(4)
    assert torch.equal(grad(lambda p: p[0].sum())([x, normal(2, 3)]).grads[1], torch.zeros(2, 3, dtype=torch.float64))
    first, second = grad(lambda p: (p["a"] ** 2 * p["b"]).sum())({"a": x, "b": x}).grads.values()
    torch.testing.assert_close(first, 2 * x**2)
    torch.testing.assert_close(second, x**2)
    whole, part = grad(lambda p: p[0].prod() + 3 * p[1].sum())([x, x[1:3]]).grads
    torch.testing.assert_close(whole, x.prod() / x)
    assert torch.equal(part, torch.full((2,), 3.0, dtype=torch.float64))


def test_loops_recursion_branches_and_assignment_as_executed() -> None:
    def power(x: Tensor, n: int) -> Tensor:
        return x if n == 1 else x * power(x, n - 1)

    def f(p: Tensor) -> Tensor:
        y = p.clone()
        for k in range(3):
            y[k] = power(p[k + 1], k + 2)
        y[3] = 5.0
        return y.sum() if bool(p.sum() > 0) else -y.sum()

    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 7.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 4.0, 27.0, 256.0, 1.0], dtype=torch.float64)
    assert torch.equal(grad(f)(x).grads, expected)
    assert torch.equal(grad(f)(-x).grads, -expected * torch.tensor([1, -1, 1, -1, 1]))


def test_second_and_third_derivatives_by_itself() -> None:
    def f(x: Tensor) -> Tensor:
        return x.sin()

    x = normal()
    first = grad(f)
    second = grad(lambda x: first(x).grads)
    third = grad(lambda x: second(x).grads)
    for df, expected in ((first, x.cos()), (second, -x.sin()), (third, -x.cos())):
        torch.testing.assert_close(df(x).grads, expected, rtol=1e-13, atol=1e-13)
    assert not third(x).grads.requires_grad and not third(x).value.requires_grad


def test_nested_floats_keep_their_derivative() -> None:
    inner = grad(lambda t: t**4)
    assert grad(lambda t: inner(t).grads)(2.0).grads == 48.0
    assert grad(lambda t: inner(t).grads)(2.0).value == 32.0


def test_the_second_derivative_of_a_linear_function_is_zero() -> None:
    c = normal(4)
    inner = grad(lambda x: (c * x).sum())
    assert torch.equal(grad(lambda x: inner(x).grads.sum())(X[0][:4]).grads, torch.zeros(4, dtype=torch.float64))


def test_gradient_penalty_trains() -> None:
    w, x = normal(5), normal(5, seed=1)

    def penalty(w: Tensor) -> Tensor:
        g, value = grad(lambda x: torch.exp(w @ x))(x)
        return g.square().sum() + value

    expected = 2 * torch.exp(2 * w @ x) * (w + (w @ w) * x) + torch.exp(w @ x) * x
    torch.testing.assert_close(grad(penalty)(w).grads, expected, rtol=1e-12, atol=1e-12)


def test_what_the_function_closes_over_attaches_the_result() -> None:
    w = normal(5).requires_grad_()
    df = grad(lambda x: ((w * x) ** 3).sum())
    result = df(X[0])
    torch.autograd.backward(result.grads.sum())
    torch.testing.assert_close(w.grad, 9 * w.detach() ** 2 * X[0] ** 2)
    with torch.no_grad():
        assert not df(X[0]).grads.requires_grad
    extra = grad(lambda x: (x.sum(), w * 2))(X[0]).extras[0]
    assert extra.requires_grad


def test_leaves_that_require_grad_attach_the_result(params: dict[str, Tensor]) -> None:
    linked = {k: v.clone().requires_grad_() for k, v in params.items()}
    result = grad(loss)(linked, X)
    assert result.grads["w"].requires_grad and result.value.requires_grad
    double = torch.autograd.grad(result.grads["w"].sum(), [linked["b"]])[0]
    inner = [t.clone().requires_grad_() for t in params.values()]
    gw = torch.autograd.grad(torch.tanh(X @ inner[0].T + inner[1]).square().sum(), inner[0], create_graph=True)[0]
    torch.testing.assert_close(double, torch.autograd.grad(gw.sum(), inner[1])[0], rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        plain = grad(loss)(linked, X)
        assert not plain.grads["w"].requires_grad and not plain.value.requires_grad and not torch.is_grad_enabled()
    assert all(t.grad is None for t in linked.values())


def test_parameters_are_left_alone(params: dict[str, Tensor]) -> None:
    before, versions = copy.deepcopy(params), [t._version for t in params.values()]
    grad(loss)(params, X)
    assert all(torch.equal(params[k], before[k]) for k in params)
    assert [t._version for t in params.values()] == versions
    assert all(t.grad is None and not t.requires_grad and t.is_leaf for t in params.values())


def test_gradients_may_be_written_to() -> None:
    a, b, c = normal(4), normal(4, seed=1), normal(2, seed=2)
    grads = grad(lambda p: (p[0] + p[1]).sum() + torch.cat([p[0], p[2]]).sum() + p[3].expand(3, 4).sum())([a, b, c, b]).grads
    before = [g.clone() for g in grads]
    for i, g in enumerate(grads):
        g.mul_(10)
        others = [other for j, other in enumerate(grads) if j > i]
        assert all(torch.equal(o, q) for o, q in zip(others, before[i + 1 :], strict=True))
        assert torch.equal(g, before[i] * 10)
    product = normal(6)
    parts = grad(lambda p: ((torch.cat([p[0], p[1]]) + p[2]) * product).sum())([a, c, normal(6, seed=5)]).grads
    parts[2].zero_()
    assert torch.equal(parts[0], product[:4]) and torch.equal(parts[1], product[4:])


class Remembered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square().sum() / 2

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.saved_tensors[0]


def test_a_gradient_is_never_the_parameter_itself() -> None:
    x = normal(4)
    before = x.clone()
    grad(Remembered.apply)(x).grads.zero_()
    assert torch.equal(x, before)


def test_sparse_gradients_become_dense() -> None:
    index, table = torch.tensor([0, 2, 2]), normal(4, 3)
    g = grad(lambda w: torch.nn.functional.embedding(index, w, sparse=True).sum())(table).grads
    expected = torch.tensor([1.0, 0, 2, 0], dtype=torch.float64)[:, None].expand(4, 3)
    assert g.layout == torch.strided and torch.equal(g, expected)


def test_dtypes_are_kept_under_autocast() -> None:
    params = {"w": normal(3, 5, dtype=torch.float32), "b": normal(3, dtype=torch.float64)}
    x = X.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grads, value = grad(lambda p: (torch.nn.functional.linear(x, p["w"]).float() + p["b"]).square().sum())(params)
        own = params["w"].clone().requires_grad_()
        expected = (torch.nn.functional.linear(x, own).float() + params["b"]).square().sum()
    torch.testing.assert_close(grads["w"], torch.autograd.grad(expected, own)[0], rtol=0, atol=0)
    assert grads["w"].dtype == torch.float32 and grads["b"].dtype == torch.float64 and value == expected


class MatrixInFloat32(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.saved_tensors[0] @ ctx.saved_tensors[0]


def test_the_backward_pass_is_not_cast() -> None:
    x = normal(4, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = grad(MatrixInFloat32.apply)(x).grads
    torch.testing.assert_close(found, (x.double() @ x.double()).float(), rtol=1e-5, atol=1e-5)


def test_inference_tensors_are_read() -> None:
    with torch.inference_mode():
        x = normal(4)
    assert torch.equal(grad(lambda x: (x**2).sum())(x).grads, 2 * x)


def test_threads_do_not_meet(params: dict[str, Tensor]) -> None:
    df, found = grad(loss), {}

    def work(seed: int) -> None:
        x = normal(7, 5, seed=seed)
        for _ in range(20):
            found[seed] = df(params, x).grads["w"]

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for seed, g in found.items():
        assert torch.equal(g, grad(loss)(params, normal(7, 5, seed=seed)).grads["w"])


def test_prints_pickles_and_copies(params: dict[str, Tensor]) -> None:
    df = grad(loss, compile="replay", partial_grad=True)
    assert repr(df) == "grad(loss, argnums=0, compile='replay', partial_grad=True)"
    again = pickle.loads(pickle.dumps(grad(loss)))
    assert isinstance(again, GradFunction) and torch.equal(again(params, X).grads["w"], grad(loss)(params, X).grads["w"])
    assert torch.equal(copy.deepcopy(again)(params, X).value, again(params, X).value)
    result = again(params, X)
    assert repr(result).startswith("GradResult(grads={'w': tensor(") and type(pickle.loads(pickle.dumps(result))) is GradResult
