"""Custom derivative rules agree with plain autograd in every mode, to any order, and refuse what they do not know."""

from __future__ import annotations

import copy
import pickle
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad

import hesse
from hesse.autodiff.custom import custom_vjp
from hesse.core.errors import LeafError, NoRuleError, StructureError, UnsupportedError


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@custom_vjp
def log1pexp(x):
    return torch.log1p(x.exp())


@log1pexp.vjp
def _(g, y, x):
    return g * (1 - torch.exp(-y))


def plain_log1pexp(x):
    return torch.log1p(x.exp())


@custom_vjp
def scaled(x, w, *, power=2):
    return (x * w) ** power


scaled.defvjps(
    lambda g, y, x, w, *, power: g * power * (x * w) ** (power - 1) * w,
    lambda g, y, x, w, *, power: g * power * (x * w) ** (power - 1) * x,
)


def plain_scaled(x, w, *, power=2):
    return (x * w) ** power


def test_gradients_of_gradients() -> None:
    x = randn(3, 2).requires_grad_()
    mine, plain = log1pexp(x).sum(), plain_log1pexp(x).sum()
    for _ in range(4):
        same(mine, plain)
        (gm,), (gp,) = (torch.autograd.grad(value, x, create_graph=True) for value in (mine, plain))
        same(gm, gp)
        mine, plain = (gm**2).sum(), (gp**2).sum()


def test_gradients_are_summed_to_the_shape_of_the_argument() -> None:
    x, w = randn(4, 3).requires_grad_(), randn(3, seed=1).requires_grad_()
    mine = torch.autograd.grad(scaled(x, w, power=3).sum(), (x, w))
    plain = torch.autograd.grad(plain_scaled(x, w, power=3).sum(), (x, w))
    for a, b in zip(mine, plain, strict=True):
        assert a.shape == b.shape
        same(a, b)
    keep = randn(4, 1, seed=2).requires_grad_()
    same(*(torch.autograd.grad(f(randn(4, 3), keep).sum(), keep)[0] for f in (scaled, plain_scaled)))


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.grad(f)(x),
        lambda f, x: torch.func.grad(lambda x: (torch.func.grad(f)(x) ** 2).sum())(x),
        lambda f, x: torch.func.hessian(f)(x),
        lambda f, x: torch.func.jacrev(torch.func.jacrev(f))(x),
        lambda f, x: torch.func.jacrev(torch.func.jacfwd(f))(x),
        lambda f, x: torch.func.jvp(f, (x,), (randn(3, seed=5),))[1],
        lambda f, x: torch.func.vmap(torch.func.grad(f))(torch.stack([x, x + 1, 2 * x])),
        lambda f, x: torch.func.vmap(torch.func.hessian(f))(torch.stack([x, x + 1])),
        lambda f, x: torch.func.vmap(f)(torch.stack([x, x + 1])),
        lambda f, x: hesse.grad(f)(x).grads,
        lambda f, x: hesse.grad(lambda x: (hesse.grad(f)(x.requires_grad_()).grads ** 2).sum())(x).grads,
        lambda f, x: hesse.hessian(f, x).hessian,
        lambda f, x: hesse.jacobian(lambda x: hesse.grad(f)(x).grads, x).jacobian,
        lambda f, x: hesse.linearize(f, x).jacobian @ randn(3, seed=5),
    ],
)
@pytest.mark.parametrize("name", ["log1pexp", "scaled"])
def test_every_transform(transform, name) -> None:
    w = randn(2, 3, seed=3)
    mine = {"log1pexp": lambda x: log1pexp(x * x).sum() ** 2, "scaled": lambda x: (scaled(x, w).cos()).sum()}[name]
    plain = {"log1pexp": lambda x: plain_log1pexp(x * x).sum() ** 2, "scaled": lambda x: plain_scaled(x, w).cos().sum()}[name]
    x = randn(3, seed=4)
    same(transform(mine, x.clone()), transform(plain, x.clone()))


def test_forward_mode_inside_forward_mode_is_refused_where_it_would_be_zero() -> None:
    x, v = randn(3), randn(3, seed=1)
    with pytest.raises(UnsupportedError, match="derivative of log1pexp at both levels"):
        torch.func.jacfwd(torch.func.jacfwd(lambda x: log1pexp(x).sum()))(x)

    def outer(x):  # the inner level differentiates something else
        return torch.func.jvp(lambda w: (w * log1pexp(x)).sum(), (x,), (v,))[1]

    same(torch.func.jvp(outer, (x,), (v,))[1], (v * v * torch.sigmoid(x)).sum())


def test_forward_mode_of_plain_dual_numbers() -> None:
    x, v = randn(3), randn(3, seed=1)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(log1pexp(forward_ad.make_dual(x, v))).tangent
    same(tangent, v * torch.sigmoid(x))


def test_a_forward_rule_is_used() -> None:
    @custom_vjp
    def cube(x, factor):
        return factor * x**3

    @cube.jvp
    def _(tangents, y, x, factor):
        calls.append(1)
        assert tangents[1] == 2
        return 3 * factor * x**2 * tangents[0]

    calls: list[int] = []
    x, v = randn(3), randn(3, seed=1)
    same(torch.func.jvp(lambda x: cube(x, 2), (x,), (v,))[1], 6 * x**2 * v)
    assert calls
    same(torch.func.jacfwd(lambda x: cube(x, 2))(x), torch.diag(6 * x**2))


def test_a_forward_rule_of_the_wrong_shape_is_refused() -> None:
    @custom_vjp
    def total(x):
        return x.sum()

    total.jvp(lambda v, y, x: v)
    with pytest.raises(StructureError, match="tangent like its answer"):
        torch.func.jvp(total, (randn(3),), (randn(3),))


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@custom_vjp
def affine(params, x, scale=1.0):
    return Pair(scale * x @ params["w"] + params["b"], x.exp())


@affine.vjp
def _(g, y, params, x, scale):
    return ({"w": scale * x.T @ g.first, "b": g.first.sum(0)}, scale * g.first @ params["w"].T + g.second * y.second, None)


def test_trees_of_arguments_and_of_results() -> None:
    params, x = {"w": randn(3, 2), "b": randn(2, seed=1)}, randn(5, 3, seed=2)

    def plain(params, x, scale):
        return Pair(scale * x @ params["w"] + params["b"], x.exp())

    results = []
    for f in (affine, plain):
        leaves = [params["w"].clone().requires_grad_(), params["b"].clone().requires_grad_(), x.clone().requires_grad_()]
        out = f({"w": leaves[0], "b": leaves[1]}, leaves[2], 0.5)
        assert isinstance(out, Pair)
        first = torch.autograd.grad((out.first**2).sum() + out.second.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), leaves)
        only = torch.autograd.grad(f({"w": leaves[0], "b": leaves[1]}, leaves[2], 0.5).second.sum(), leaves, allow_unused=True)
        results.append([*first, *second, only[2]])
    for a, b in zip(*results, strict=True):
        same(a, b)


def test_an_intermediate_result_is_a_further_output() -> None:
    runs = []

    @custom_vjp
    def with_root(x):
        runs.append(1)
        root = x.sqrt()
        return root.sin(), root

    @with_root.vjp
    def _(g, y, x):
        _, root = y
        return (g[0] * root.cos() + g[1]) / (2 * root)

    x = randn(4).abs().requires_grad_()
    (gm,) = torch.autograd.grad(with_root(x)[0].sum(), x, create_graph=True)
    (gp,) = torch.autograd.grad(x.sqrt().sin().sum(), x, create_graph=True)
    same(gm, gp)
    same(*(torch.autograd.grad((g**3).sum(), x)[0] for g in (gm, gp)))
    assert len(runs) == 1


def test_constants_and_integer_tensors_need_no_gradient() -> None:
    @custom_vjp
    def pick(x, index, mask, mode):
        assert mode == "rows"
        return x[index] * mask, index + 1

    @pick.vjp
    def _(g, y, x, index, mask, mode):
        return torch.zeros_like(x).index_add(0, index, g[0] * mask), None, None, None

    x, index, mask = randn(4, 3).requires_grad_(), torch.tensor([2, 2, 0]), torch.tensor([True, False, True])
    value, following = pick(x, index, mask, "rows")
    assert not following.requires_grad and following.tolist() == [3, 3, 1]
    same(*(torch.autograd.grad((y**2).sum(), x)[0] for y in (value, x[index] * mask)))


def test_only_the_rules_that_are_needed_run() -> None:
    ran = []

    @custom_vjp
    def product(a, b):
        return a * b

    product.defvjps(lambda g, y, a, b: ran.append("a") or g * b, lambda g, y, a, b: ran.append("b") or g * a)
    a, b = randn(3).requires_grad_(), randn(3, seed=1)
    torch.autograd.grad(product(a, b).sum(), a)
    assert ran == ["a"]


def test_a_missing_gradient_is_an_error_that_names_the_argument() -> None:
    @custom_vjp
    def product(a, b):
        return a * b

    product.defvjps(lambda g, y, a, b: g * b, None)
    a, b = randn(3).requires_grad_(), randn(3, seed=1).requires_grad_()
    with pytest.raises(NoRuleError, match=r"missing gradient for argument 1 \('b'\) of product"):
        product(a, b).sum().backward()
    with pytest.raises(NoRuleError, match="argument 1"):
        torch.func.grad(lambda b: product(a, b).sum())(b)
    product(a, b.detach()).sum().backward()
    product.vjp(lambda g, y, a, b: (None, g * a))
    with pytest.raises(NoRuleError, match="argument 0"):
        product(a, b).sum().backward()
    with pytest.raises(NoRuleError, match="argument 0"):
        torch.func.jvp(lambda a: product(a, b), (a,), (a,))


def test_arguments_declared_constant_have_a_zero_gradient() -> None:
    @custom_vjp(nondiff_argnames=("target",))
    def distance(x, target):
        return (x - target) ** 2

    @distance.vjp
    def _(g, y, x, target):
        return 2 * g * (x - target), None

    x, target = randn(3).requires_grad_(), randn(3, seed=1).requires_grad_()
    gx, gt = torch.autograd.grad(distance(x, target).sum(), (x, target), allow_unused=True)
    assert gt is None
    same(gx, 2 * (x - target))
    with pytest.raises(StructureError, match="'goal'"):
        custom_vjp(nondiff_argnames=("goal",))(lambda x: x)


@pytest.mark.parametrize("gradient, error, words", [
    (lambda g, x: g[0], StructureError, r"shape \[3\], where the argument has shape \[2, 3\]"),
    (lambda g, x: g.T, StructureError, r"argument 0 \('x'\)"),
    (lambda g, x: 1.0, LeafError, "returned float"),
    (lambda g, x: g * 1j, LeafError, "complex128"),
    (lambda g, x: (g > 0), LeafError, "bool"),
    (lambda g, x: (g, g), LeafError, "tuple"),
])  # fmt: skip
def test_wrong_gradients_are_refused(gradient, error, words) -> None:
    @custom_vjp
    def twice(x):
        return 2 * x

    twice.vjp(lambda g, y, x: gradient(g, x))
    x = randn(2, 3).requires_grad_()
    with pytest.raises(error, match=words):
        twice(x).sum().backward()


def test_the_number_and_structure_of_gradients_are_checked() -> None:
    @custom_vjp
    def product(a, b):
        return a["x"] * b

    a, b = {"x": randn(3).requires_grad_()}, randn(3, seed=1)
    product.vjp(lambda g, y, a, b: g * b)
    with pytest.raises(StructureError, match=r"each of its 2 arguments \(a, b\)"):
        product(a, b).sum().backward()
    product.vjp(lambda g, y, a, b: ({"y": g * b}, None))
    with pytest.raises(StructureError, match="leaf at 'y', where the argument has 'x'"):
        product(a, b).sum().backward()
    product.vjp(lambda g, y, a, b: ({"x": None}, None))
    with pytest.raises(NoRuleError, match="at 'x'"):
        product(a, b).sum().backward()
    with pytest.raises(StructureError, match="3 rules"):
        product.defvjps(None, None, None)


def test_a_gradient_takes_the_dtype_of_its_argument() -> None:
    x, w = torch.tensor([1.0, 2.0], requires_grad=True), randn(2)
    (gx,) = torch.autograd.grad(scaled(x, w).sum(), x)
    assert gx.dtype == torch.float32
    torch.testing.assert_close(gx.double(), 2 * x.detach().double() * w**2)


@custom_vjp(once_differentiable=True)
def by_numpy(x):
    return torch.as_tensor(x.detach().numpy() ** 3)


@by_numpy.vjp
def _(g, y, x):
    return torch.as_tensor(g.numpy() * 3 * x.numpy() ** 2)


def test_a_second_derivative_of_a_once_differentiable_function_is_refused() -> None:
    x = randn(3).requires_grad_()
    (g,) = torch.autograd.grad(by_numpy(x).sum(), x)
    same(g, 3 * x.detach() ** 2)
    (g,) = torch.autograd.grad(by_numpy(x).sum(), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="second derivative of by_numpy"):
        g.sum().backward()
    u = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(by_numpy(x), x, u, create_graph=True)
    with pytest.raises(UnsupportedError, match="second derivative of by_numpy"):
        torch.autograd.grad(g.sum(), u)
    with pytest.raises(UnsupportedError, match=r"@by_numpy\.jvp"), forward_ad.dual_level():
        by_numpy(forward_ad.make_dual(x.detach(), g.detach()))


def test_once_differentiable_under_transforms() -> None:
    @custom_vjp(once_differentiable=True)
    def cube(x):
        return x**3

    cube.vjp(lambda g, y, x: 3 * g * x**2)
    x = randn(3)
    same(torch.func.grad(lambda x: cube(x).sum())(x), 3 * x**2)
    same(torch.func.vmap(torch.func.grad(cube))(x), 3 * x**2)
    for second in (lambda: torch.func.jacrev(torch.func.grad(lambda x: cube(x).sum()))(x),
                   lambda: torch.func.hessian(lambda x: cube(x).sum())(x),
                   lambda: hesse.hessian(lambda x: cube(x).sum(), x)):  # fmt: skip
        with pytest.raises(UnsupportedError, match="of cube was asked for"):
            second()


def test_tensors_that_would_get_no_gradient_are_refused() -> None:
    w = randn(3).requires_grad_()

    @custom_vjp
    def weighted(x):
        return x * w

    weighted.vjp(lambda g, y, x: g * w)
    with pytest.raises(LeafError, match="reads 'w'"):
        weighted(randn(3))
    with torch.no_grad():
        weighted(randn(3))


def test_tensors_that_would_get_no_gradient_are_found_wherever_they_are_held() -> None:
    linear, weights, w = torch.nn.Linear(3, 2), {"a": [torch.ones(3, requires_grad=True)]}, torch.ones(3, requires_grad=True)

    def helper(x):
        return x * w

    for read, words in (
        (lambda x: linear(x), "reads 'linear.(weight|bias)'"),
        (lambda x: x * weights["a"][0], r"reads 'weights.a.0'"),
        (lambda x: helper(x), r"reads a tensor of shape \(3,\)"),
        (lambda x: (x, w), "reads 'w'"),
    ):
        with pytest.raises(LeafError, match=words):
            custom_vjp(read)(torch.ones(3, requires_grad=True))
        with pytest.raises(LeafError, match=words):
            torch.vmap(custom_vjp(read))(torch.ones(2, 3, requires_grad=True))


def test_tensors_of_transforms_that_would_get_no_gradient_are_refused() -> None:
    def times(w, x):
        inner = custom_vjp(lambda x: x * w)
        inner.vjp(lambda g, y, x: g * w)
        return inner(x)

    x, w = torch.tensor(2.0), torch.tensor([3.0, 4.0])
    with pytest.raises(LeafError, match="reads 'w'"):
        torch.func.grad(times)(w[0], x)
    with pytest.raises(LeafError, match="reads 'w'"):
        torch.vmap(torch.func.grad(times), in_dims=(0, None))(w, x)
    with pytest.raises(LeafError, match="reads 'w'"):
        torch.func.grad(lambda w: torch.func.grad(lambda x: times(w, x))(x))(w[0])
    same(torch.vmap(times, in_dims=(0, None))(w, x), 2 * w)
    same(torch.func.grad(lambda v: v * times(v.detach(), x))(w[0]), 2 * w[0])
    same(torch.func.grad(lambda x: times(w[0], x))(x), w[0])


def test_what_a_function_reads_without_differentiating_is_no_matter() -> None:
    w = torch.nn.Parameter(torch.tensor([4.0, 9.0]))

    @custom_vjp
    def root(x):
        z = torch.ones_like(w).requires_grad_()
        for _ in range(20):
            (slope,) = torch.autograd.grad((z * z * z / 3 - x * z).sum(), z)
            z = (z.detach() - slope / (2 * z.detach())).requires_grad_()
        return z * 1

    root.vjp(lambda g, y, x: g / (2 * y))
    x = torch.tensor([4.0, 9.0], requires_grad=True)
    torch.testing.assert_close(root(x).detach(), torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(torch.autograd.grad(root(x).sum(), x)[0], torch.tensor([1 / 4, 1 / 6]))


def test_a_function_in_numpy() -> None:
    @custom_vjp
    def sine(x):
        return torch.from_numpy(np.sin(x.numpy()))

    sine.vjp(lambda g, y, x: g * x.cos())
    x = randn(3).requires_grad_()
    same(torch.autograd.grad(sine(x).sum(), x)[0], x.cos())


def test_a_result_that_shares_memory_with_an_argument_is_a_copy() -> None:
    flat = custom_vjp(lambda x: x.view(-1))
    flat.vjp(lambda g, y, x: g.view(x.shape))
    x = randn(2, 3).requires_grad_()
    before = x.detach().clone()
    y = flat(x)
    same(torch.autograd.grad((y * y).sum(), x)[0], 2 * before)
    y.mul_(2)
    same(x.detach(), before)


def test_methods() -> None:
    class Scale:
        factor = 3.0

        @custom_vjp
        def apply(self, x):
            return self.factor * x

        @apply.vjp
        def _(g, y, self, x):  # noqa: N805 - the rule of a method, not a method
            return None, self.factor * g

    x = randn(3).requires_grad_()
    same(torch.autograd.grad(Scale().apply(x).sum(), x)[0], 3 * torch.ones(3, dtype=torch.float64))
    assert isinstance(Scale.apply, type(log1pexp))


def test_a_changed_argument_and_a_result_without_tensors_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"argument 0 \('x'\) in place"):
        custom_vjp(lambda x: x.add_(1))(randn(3))
    with pytest.raises(StructureError, match="Python float"):
        custom_vjp(lambda x: x.sum().item())(randn(3))


def test_an_argument_handed_back() -> None:
    @custom_vjp
    def straight_through(x):
        return x

    straight_through.vjp(lambda g, y, x: 3 * g)
    x = randn(3).requires_grad_()
    same(torch.autograd.grad(straight_through(x * 1).sum(), x)[0], 3 * torch.ones(3, dtype=torch.float64))


def test_variable_arguments() -> None:
    @custom_vjp
    def total(*xs, **named):
        return sum(x * x for x in (*xs, *named.values()))

    total.vjp(lambda g, y, *xs, **named: tuple(2 * g * x for x in (*xs, *named.values())))
    xs = [randn(3, seed=seed).requires_grad_() for seed in range(3)]
    for g, x in zip(torch.autograd.grad(total(xs[0], xs[1], z=xs[2]).sum(), xs), xs, strict=True):
        same(g, 2 * x)
    with pytest.raises(StructureError, match="variable number"):
        total.defvjps(lambda g, y, *xs: g)


def test_complex_arguments() -> None:
    @custom_vjp
    def energy(z):
        return (z * z.conj()).real

    energy.vjp(lambda g, y, z: 2 * g * z)
    z = torch.complex(randn(3), randn(3, seed=1)).requires_grad_()
    same(*(torch.autograd.grad(y.sin().sum(), z)[0] for y in (energy(z), (z * z.conj()).real)))


def test_it_is_still_the_function() -> None:
    assert log1pexp.__name__ == "log1pexp" and repr(log1pexp) == "custom_vjp(log1pexp)"
    assert pickle.loads(pickle.dumps(log1pexp)) is log1pexp and copy.deepcopy(log1pexp) is log1pexp
    x = randn(3).requires_grad_()
    assert "log1pexp" in log1pexp(x).grad_fn.name()


def test_nothing_is_kept_alive_by_a_call() -> None:
    import gc
    import weakref

    x = randn(3).requires_grad_()
    y = log1pexp(x * 1)
    kept = weakref.ref(y.grad_fn)
    del y
    gc.collect()
    assert kept() is None
