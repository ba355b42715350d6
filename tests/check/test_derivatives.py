"""Right functions pass, kinks and all; planted bugs are found and named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hesse.autodiff.custom import custom_vjp
from hesse.check import WrongDerivativeError, assert_derivatives, check_derivatives
from hesse.core.errors import LeafError, NonFiniteError, StructureError


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(autouse=True)
def _keep_rng():
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)


def positive(*shape: int) -> torch.Tensor:
    return randn(*shape).abs() + 0.5


TIES = torch.tensor([[1.0, 1.0, -2.0], [0.0, 3.0, 3.0]], dtype=torch.float64)
RIGHT: dict[str, tuple[Any, Any]] = {
    "linear": (lambda x: 3 * x, randn(4, 3)),
    "polynomial": (lambda x: (x**3 - x).sum(), randn(4, 3)),
    "constant": (lambda x: x * 0 + 1, randn(3)),
    "far from zero": (lambda x: 1e6 + x.sin(), randn(3)),
    "tiny inputs": (lambda x: (1e8 * x).sin(), 1e-8 * randn(3)),
    "huge inputs": (lambda x: (1e-6 * x).sin(), 1e6 * randn(3)),
    "relu at kinks": (torch.relu, torch.tensor([[0.0, 1.0, -1.0], [0.0, 0.0, 2.0]], dtype=torch.float64)),
    "abs at zero": (torch.abs, torch.zeros(3, dtype=torch.float64)),
    "max with ties": (lambda x: x.max(dim=1).values, TIES),
    "amax with ties": (lambda x: x.amax(dim=1), TIES),
    "sort with ties": (lambda x: x.sort(dim=1).values, TIES),
    "logits by hand": (lambda x: x.clamp_min(0) + torch.log1p((-x.abs()).exp()), randn(3, 4)),
    "leaky by two masks": (lambda x: torch.where(x > 0, x, 0) + 0.2 * torch.where(x > 0, 0, x), randn(3, 4)),
    "topk": (lambda x: x.topk(2, dim=1).values, randn(3, 4)),
    "median": (lambda x: x.contiguous().median(dim=1).values, randn(3, 5)),  # of expanded x it is wrong in torch
    "clamp at its bounds": (lambda x: x.clamp(-1, 1), torch.tensor([-1.0, 0.5, 1.0, 3.0], dtype=torch.float64)),
    "hard shrink": (lambda x: F.hardshrink(x, 1.0), torch.tensor([-1.0, 0.5, 1.0, 3.0], dtype=torch.float64)),
    "rounding": (lambda x: x.round() + x, randn(5)),
    "norm": (lambda x: x.norm(), randn(3, 4)),
    "norm at zero": (lambda x: x.norm(), torch.zeros(3, dtype=torch.float64)),
    "norms of rows": (lambda x: x.norm(dim=1, p=1), randn(3, 4)),
    "root at zero": (torch.sqrt, torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)),
    "root at the border in every element": (torch.sqrt, torch.zeros(5, dtype=torch.float64)),
    "root at the upper border": (lambda x: (1 - x).sqrt(), torch.ones(5, dtype=torch.float64)),
    "logarithm close to zero": (torch.log, torch.tensor([1e-6, 1.0, 4.0], dtype=torch.float64)),
    "softmax": (lambda x: x.softmax(1), randn(3, 5)),
    "logsumexp": (lambda x: x.logsumexp(1), randn(3, 5)),
    "matrix product": (lambda t: t[0] @ t[1], (randn(3, 4), randn(4, 2, seed=1))),
    "inverse": (lambda x: torch.linalg.inv(x + 3 * torch.eye(3, dtype=x.dtype)), randn(3, 3)),
    "determinant": (torch.linalg.slogdet, randn(3, 3) + 3 * torch.eye(3, dtype=torch.float64)),
    "tree with a float and constants": (lambda t: {"y": t["a"] * t["scale"] ** t["n"]}, {"a": randn(3), "scale": 2.0, "n": 3}),
    "several outputs": (lambda x: (x.sin(), x.sum(), x > 0), randn(3, 4)),
    "indexing": (lambda x: x[torch.tensor([0, 0, 2])] ** 2, randn(4, 3)),
    "assignment": (lambda x: x.clone().index_fill(0, torch.tensor([1]), 2.0).exp(), randn(4, 3)),
    "cumulative product": (lambda x: x.cumprod(1), randn(3, 4)),
    "branch on data": (lambda x: x**2 if x.sum() > 0 else x**3, randn(4)),
    "complex square": (lambda z: z * z, torch.complex(randn(3), randn(3, seed=1))),
    "complex modulus": (lambda z: z.abs() ** 2 + z.real, torch.complex(randn(3), randn(3, seed=1))),
    "real to complex": (torch.fft.rfft, randn(8)),
    "scalar": (lambda x: x.tanh(), torch.tensor(0.3, dtype=torch.float64)),
    "dropout": (lambda x: F.dropout(x, 0.5) * x, randn(5, 6)),
    "convolution": (lambda t: F.conv2d(*t, padding=1), (randn(2, 3, 5, 4), randn(4, 3, 3, 3, seed=1))),
    "max pooling": (lambda x: F.max_pool2d(x, 2), randn(1, 2, 6, 4)),
    "large elementwise": (lambda x: x.sigmoid(), randn(30, 40)),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right_functions_are_confirmed(name: str) -> None:
    f, x = RIGHT[name]
    report = check_derivatives(f, x)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", ["polynomial", "relu at kinks", "matrix product", "complex square", "max with ties"])
def test_right_functions_are_confirmed_at_level_full(name: str) -> None:
    f, x = RIGHT[name]
    report = check_derivatives(f, x, level="full")
    assert report.ok, str(report)


MODULES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)), (7, 5)),
    "cnn": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)), (4, 2, 8, 6)),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(6), nn.GELU()), (4, 6)),
    "lstm": (lambda: nn.LSTM(3, 4), (5, 2, 3)),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), (2, 5, 8)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODULES)
def test_modules_in_short_types_are_confirmed(name: str, dtype: torch.dtype) -> None:
    make, shape = MODULES[name]
    module = make().to(dtype)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    x = randn(*shape, dtype=dtype)
    report = check_derivatives(module, x)
    assert report.ok, str(report)
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    if dtype is torch.float32 and name != "lstm":
        report = check_derivatives(lambda x: module(x), x)  # a module that the function closes over
        assert report.ok and not any("float64" in note for note in report.notes), str(report)


def test_a_function_that_only_runs_in_float32_is_compared_with_its_own_error_bars() -> None:
    report = check_derivatives(lambda x: x.float().sin().double(), randn(4))
    assert report.ok, str(report)
    weight = randn(4, 3, dtype=torch.float32)

    def strict(x):
        assert x.dtype == torch.float32
        return (x @ weight).relu()

    report = check_derivatives(strict, randn(5, 4, dtype=torch.float32))
    assert report.ok and any("no equal run in float64 (AssertionError" in note for note in report.notes), str(report)
    with pytest.raises(WrongDerivativeError, match=r"factor 1\.05|wrong in several of 20 elements"):
        assert_derivatives(lambda x: strict(Bug.apply(x, lambda g, x: 1.05 * g, lambda x: x * 1)), randn(5, 4).float())


class Bug(torch.autograd.Function):
    """A function whose backward pass is whatever a test says."""

    @staticmethod
    def forward(ctx, x, backward, forward=lambda x: x**2):
        ctx.save_for_backward(x)
        ctx.rule = backward
        return forward(x)

    @staticmethod
    def backward(ctx, g):
        return ctx.rule(g, *ctx.saved_tensors), None, None


def one_element(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    scale = torch.ones_like(x)
    scale[1, 2] = 1.01
    return 2 * x * g * scale


def clipped(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (2 * x * g).clamp(-50, 50)


def in_place(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    grad = 2 * x * g
    x.detach().data.mul_(1.5)
    return grad


def eats_cotangent(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    grad = 2 * x * g
    g.detach().data.zero_()
    return grad


def by_memory(tensor: torch.Tensor) -> torch.Tensor:
    """What a kernel sees that ignores strides."""
    start, count = tensor.storage_offset(), tensor.numel()
    stored = tensor.detach().untyped_storage().nbytes() // tensor.element_size()
    flat = tensor.detach().as_strided((stored,), (1,), 0)
    return torch.cat([flat[start:], flat.new_zeros(count)])[:count].reshape(tensor.shape)


def nan_somewhere(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    grad = 2 * x * g
    return torch.where(torch.arange(x.shape[-1]) == 1, torch.nan, grad)


class Remembers:
    """Keeps its input on itself, not in the graph."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x.detach().clone()
        return Bug.apply(x, lambda g, x: 2 * self.x * g)


class TwoArguments(torch.autograd.Function):
    """A product that mixes up which argument needs a gradient."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return (g * b, g * a) if all(ctx.needs_input_grad) else (g * a, g * b)


class TwoOutputs(torch.autograd.Function):
    """Fails where only one of its outputs is used."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        return x**2, x * 3

    @staticmethod
    def backward(ctx, g, h):
        (x,) = ctx.saved_tensors
        return 2 * x * g + 3 * h


class Tangent(torch.autograd.Function):
    """Right in reverse, wrong in forward mode."""

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g

    @staticmethod
    def jvp(ctx, v):
        return ctx.saved_tensors[0] * v


def with_rule(rule, forward=lambda x: x**2):
    return lambda x: Bug.apply(x, rule, forward)


SQUARE = randn(3, 3)
BUGS: dict[str, tuple[Any, Any, str, str]] = {
    "factor": (with_rule(lambda g, x: 4 * x * g), randn(2, 3), "reverse mode", "factor 2.000"),
    "factor in a large tensor": (with_rule(lambda g, x: 2.02 * x * g), randn(30, 20), "reverse mode", "factor 1.010"),
    "sign": (with_rule(lambda g, x: -2 * x * g), randn(2, 3), "reverse mode", "wrong sign"),
    "sign of a scalar": (with_rule(lambda g, x: -2 * x * g), randn(1)[0], "reverse mode", "wrong sign"),
    "missing": (with_rule(lambda g, x: torch.zeros_like(x)), randn(2, 3), "reverse mode", "zero: missing"),
    "none": (with_rule(lambda g, x: None), randn(2, 3), "reverse mode", "zero: missing"),
    "detached": (lambda x: x.detach() ** 2, randn(2, 3), "reverse mode", "zero: missing"),
    "partly detached": (lambda x: x.detach() * x, randn(2, 3), "reverse mode", "factor 0.500"),
    "transposed": (with_rule(lambda g, x: (2 * x * g).T), randn(3, 3), "reverse mode", "transposed"),
    "transposed, not square": (
        with_rule(lambda g, x: (2 * x * g).T.reshape(x.shape)), randn(2, 3), "reverse mode", "transposed"),
    "transposed product": (with_rule(lambda g, x: g @ SQUARE, lambda x: x @ SQUARE), randn(4, 3), "reverse mode", "without"),
    "one element": (with_rule(one_element), randn(2, 3), "reverse mode", r"1 of 6 elements, at \(1, 2\) \(factor 1\.010\)"),
    "one element of many": (
        with_rule(one_element), randn(20, 30), "reverse mode", r"1 of 600 elements, at \(1, 2\) \(factor 1\.010\)"),
    "one element of some": (with_rule(one_element), randn(5, 4), "reverse mode", r"1 of 20 elements, at \(1, 2\)"),
    "order": (with_rule(lambda g, x: (2 * x * g).flip(0)), randn(5), "reverse mode", "wrong order"),
    "constant offset": (with_rule(lambda g, x: 2 * x * g + 0.1), randn(5), "reverse mode", "off by the constant 0.100"),
    "not undone broadcast": (
        with_rule(lambda g, x: (2 * x * g).sum().expand(x.shape)), randn(2, 3), "reverse mode", "summed over the elements"),
    "mean for sum": (with_rule(lambda g, x: (2 * x * g).mean().expand(x.shape)), randn(2, 3), "reverse mode", "averaged"),
    "not a number": (with_rule(nan_somewhere), randn(2, 3), "reverse mode", r"not a number in 2 of 6 elements, at \(0, 1\)"),
    "infinite": (with_rule(lambda g, x: 2 * x * g / 0), randn(2, 3), "reverse mode", ""),
    "raises": (with_rule(lambda g, x: g.no_such_thing), randn(2, 3), "reverse mode", "raises AttributeError"),
    "wrong in one of two leaves": (
        lambda t: t["a"] * Bug.apply(t["b"], lambda g, x: 3 * x * g), {"a": randn(3), "b": randn(3, seed=1)}, "reverse mode",
        "of 'b' at .*factor 1.500"),
    "kinked, and wrong": (lambda x: Bug.apply(x.relu(), lambda g, x: 4 * x * g) + x.abs(), torch.tensor([0.0, 1.0, 2.0]),
                          "reverse mode", ""),
    "complex conjugate": (with_rule(lambda g, z: 2 * z * g), torch.complex(randn(3), randn(3, seed=1)), "reverse mode", ""),
    "forward mode": (Tangent.apply, randn(2, 3), "forward mode", "factor 0.500"),
    "sign of the cotangent": (with_rule(lambda g, x: 2 * x * g.abs()), randn(1)[0], "cotangent times -1", ""),
    "clipped": (with_rule(clipped), randn(2, 3), "cotangent times 1000", ""),
    "normalized cotangent": (
        lambda x: Bug.apply(x, lambda g, x: 2 * x * g / max(1.0, g.norm().item() / 5)), randn(2, 3), "times 1000", ""),
    "cotangent by memory": (with_rule(lambda g, x: 2 * x * by_memory(g)), randn(2, 3), "strided cotangent",
                            "only when the cotangent is strided"),
    "cotangent viewed": (with_rule(lambda g, x: (2 * x).view(-1).mul(g.view(-1)).view(x.shape)), randn(2, 3),
                         "transposed cotangent|expanded cotangent|strided cotangent", "raises RuntimeError"),
    "input by memory": (with_rule(lambda g, x: 2 * by_memory(x) * g), randn(4, 3), "transposed input",
                        "only when the input is transposed"),
    "saved tensor mutated": (with_rule(in_place), randn(2, 3), "inputs unchanged", "writes to its input"),
    "cotangent mutated": (with_rule(eats_cotangent), randn(2, 3), "cotangents unchanged", "writes to its cotangent"),
    "state on the object": (Remembers(), randn(2, 3), "another call before", ""),
    "needs_input_grad": (
        lambda t: TwoArguments.apply(*t), (randn(3), randn(3, seed=1)), "alone requires gradients", ""),
    "unused output": (TwoOutputs.apply, randn(3), "alone has a cotangent", "raises"),
    "second order: detached": (
        with_rule(lambda g, x: (2 * x * g).detach()), randn(2, 3), "second order", "zero: missing"),
    "second order: saved detached": (
        with_rule(lambda g, x: 2 * x.detach() * g), randn(2, 3), "second order", "zero: missing"),
    "second order: factor": (
        with_rule(lambda g, x: (2 * x - x.detach()) * g, lambda x: x**2 / 2), randn(2, 3), "second order", "factor 2.000"),
    "second order: cotangent detached": (
        with_rule(lambda g, x: 2 * x * g.detach()), randn(2, 3), "second order in the cotangent", "zero: missing"),
    "second order: one of two leaves": (
        lambda t: (t["a"] ** 3 + Bug.apply(t["b"], lambda g, x: 2 * x.detach() * g)), {"a": randn(3), "b": randn(3, seed=1)},
        "second order of 'b'", "zero: missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_found_and_named(name: str) -> None:
    f, x, check, words = BUGS[name]
    report = check_derivatives(f, x)
    assert not report.ok and report.verdict == "wrong"
    import re

    shown = [str(finding) for finding in report.findings]
    assert any(re.search(check, text) and re.search(words, text) for text in shown), str(report)


def test_a_bug_in_the_own_type_only() -> None:
    def rule(g, x):
        return 2 * x * g * (1.1 if x.dtype == torch.float32 else 1.0)

    report = check_derivatives(with_rule(rule), randn(4, 3, dtype=torch.float32))
    assert [f.check for f in report.findings] == ["own dtype against float64"] and "factor 1.100" in str(report)


def test_a_wrong_rule_of_custom_vjp() -> None:
    @custom_vjp
    def cube(x):
        return x**3

    cube.vjp(lambda g, y, x: 3 * g * x**2)
    assert_derivatives(cube, randn(4))
    cube.vjp(lambda g, y, x: 3 * g * x)
    with pytest.raises(WrongDerivativeError, match="derivatives of cube"):
        assert_derivatives(cube, randn(4))
    cube.vjp(lambda g, y, x: 3 * g * x.detach() ** 2)
    with pytest.raises(AssertionError, match="second order"):
        assert_derivatives(cube, randn(4))


def test_what_cannot_be_differentiated_twice_or_forward_is_a_note() -> None:
    @custom_vjp(once_differentiable=True)
    def cube(x):
        return x**3

    cube.vjp(lambda g, y, x: 3 * g * x**2)
    report = check_derivatives(cube, randn(4))
    assert report.ok
    assert any("no second derivative: UnsupportedError: A second derivative of cube" in note for note in report.notes)
    assert any("no forward mode" in note for note in report.notes)
    assert {row.check for row in report.compared}.isdisjoint({"forward mode", "second order"})


def test_a_finding_gives_the_derivative_itself() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, -4.0]], dtype=torch.float64)
    report = check_derivatives(lambda x: with_rule(lambda g, x: torch.full_like(x, 7.0) * g)(x).sum(), x)
    values: list[Any] = [(f.index, f.value, f.expected, f.leaf) for f in report.findings]
    assert [index for index, *_ in values] == [(0, 0), (0, 1), (1, 0)]
    ratios = [expected / value for _, value, expected, _ in values]  # the cotangent is random: ratios are known
    assert all(math.isclose(r, 2 * e / 7, rel_tol=1e-6) for r, e in zip(ratios, (1.0, 2.0, 3.0), strict=True))
    assert "expected" in str(report.findings[0]) and "at (0, 0)" in str(report.findings[0])


def test_small_inputs_take_few_evaluations() -> None:
    for name in ("polynomial", "softmax", "linear", "matrix product"):
        f, x = RIGHT[name]
        report = check_derivatives(f, x)
        assert report.evaluations <= 60, name


def test_the_same_report_twice_and_nothing_changed() -> None:
    x = randn(2, 3).requires_grad_()
    before, state = x.detach().clone(), torch.get_rng_state()
    reports = [check_derivatives(lambda x: F.dropout(x.sin(), 0.3), x) for _ in range(2)]
    assert reports[0] == reports[1] and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, before) and x.grad is None
    assert "CheckReport of <lambda>: ok" in repr(reports[0])


def test_an_infinite_gradient_where_the_slope_is_finite() -> None:
    rule = lambda g, x: torch.where(x == 0, torch.inf, 2 * g * x)  # noqa: E731
    report = check_derivatives(lambda x: Bug.apply(x, rule), torch.arange(3.0))
    assert not report.ok
    assert str(report.findings[0]).startswith("reverse mode at (0,): inf, expected 0 (error bar")


def test_a_finding_without_an_expectation() -> None:
    report = check_derivatives(lambda x: torch.xlogy(x, x).sum(), torch.zeros(2, dtype=torch.float64))
    assert not report.ok and str(report.findings[0]).startswith("reverse mode at (0,): nan: not a number")


def test_where_the_function_has_no_values_around_nothing_is_said() -> None:
    signs = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    report = check_derivatives(lambda x: (signs * x).sqrt(), torch.zeros(8, dtype=torch.float64))
    assert report.verdict == "undecided" and "undecided: reverse mode: error bar inf" in str(report)


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(StructureError, match=r"lambda t: f\(\*t\)"):
        check_derivatives(lambda a, b: a * b, (randn(3), randn(3)))
    with pytest.raises(StructureError, match="changes a parameter in place"):
        check_derivatives(lambda x: x.mul_(2), randn(3))
    with pytest.raises(LeafError, match="no leaf of floating-point numbers"):
        check_derivatives(lambda x: x, torch.tensor([1, 2]))
    with pytest.raises(StructureError, match="without a tensor"):
        check_derivatives(lambda x: x.sum().item(), randn(3))
    with pytest.raises(StructureError, match="'quik'"):
        check_derivatives(lambda x: x, randn(3), level="quik")  # pyright: ignore[reportArgumentType]
    with pytest.raises(NonFiniteError, match="output"):
        check_derivatives(torch.log, torch.tensor([-1.0, 2.0]))
    with pytest.raises(StructureError, match="resolve"):
        check_derivatives(lambda x: x.sin(), randn(3).float(), rtol=1e-14)
    with pytest.raises(StructureError, match="without elements"):
        check_derivatives(lambda x: x[:0], randn(3))


def test_an_accuracy_asked_for_is_enough() -> None:
    f = with_rule(lambda g, x: 2.02 * x * g)
    assert not check_derivatives(f, randn(3)).ok
    assert check_derivatives(f, randn(3), rtol=0.05).ok
