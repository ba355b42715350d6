"""Values and gradients of every option, next to loops over pixels and to PyTorch's convolutions."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hesse.core.errors import LeafError, StructureError
from hesse.nn import ReceptiveFieldConv1d, ReceptiveFieldConv2d, ReceptiveFieldConv3d

from .common import CLASSES, FUNCTIONS, REDUCTIONS, hidden_product, neuron, plus, product, tangent
from .oracle import Case

Sweep = Callable[[Sequence[Any], int], list[Any]]
SIZES = {1: (9,), 2: (5, 6), 3: (3, 4, 5)}
KERNELS = {1: ((3,), (2,), (1,)), 2: ((2, 3), (3, 1), (2, 2)), 3: ((2, 1, 2), (1, 2, 3))}
PADDINGS = {
    1: (((0, 0),), ((2, 2),), "same"),
    2: (((0, 0), (0, 0)), ((1, 1), (2, 2)), "same"),
    3: (((0, 0),) * 3, ((0, 0), (1, 1), (2, 2)), "same"),
}
MODES = ("zeros", "value", "reflect", "replicate", "circular")
OPTIONS = [
    (dims, kernel, stride, dilation, padding, mode, groups)
    for dims in (1, 2, 3)
    for kernel in KERNELS[dims]
    for stride in ((1,) * dims, (2, 1, 2)[:dims])
    for dilation in ((1,) * dims, (1, 2, 1)[-dims:])
    for padding in PADDINGS[dims]
    for mode in MODES
    for groups in (1, 2)
    if not (padding == "same" and stride != (1,) * dims)
]


def made(options: tuple[Any, ...], name: str, reduce: str, bias: bool) -> tuple[nn.Module, Case]:
    dims, kernel, stride, dilation, padding, mode, groups = options
    fn, weight_shape = FUNCTIONS[name]
    value = 0.3 if mode == "value" else 0.0
    mode = "zeros" if mode == "value" else mode
    module = CLASSES[dims](
        fn, 2, 4, kernel, weight_shape=weight_shape, reduce=reduce, stride=stride, dilation=dilation, groups=groups, bias=bias,
        padding="same" if padding == "same" else tuple(p for p, _ in padding), padding_mode=mode, padding_value=value,
        dtype=torch.float64,
    )  # fmt: skip
    totals = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    pairs = tuple((t // 2, t - t // 2) for t in totals) if padding == "same" else padding
    return module, Case(fn, kernel, weight_shape, reduce, groups, stride, dilation, pairs, mode, value)


def test_values_and_gradients_are_those_of_loops(sweep: Sweep, sweep_rng: random.Random) -> None:
    whats = itertools.cycle(sweep_rng.sample(list(itertools.product(FUNCTIONS, REDUCTIONS, (True, False))), 96))
    for (name, reduce, bias), options in zip(whats, sweep(OPTIONS, 6)):  # noqa: B905 - the first never ends
        torch.manual_seed(0)
        module, case = made(options, name, reduce, bias)
        x = torch.rand(2, 2, *SIZES[options[0]], dtype=torch.float64, requires_grad=True)
        leaves = [x, *module.parameters()]
        value, expected = module(x), case.run(x, module.weight, module.bias)
        u = torch.randn_like(expected)
        assert_close(value, expected, rtol=1e-11, atol=1e-11)
        found, right = (torch.autograd.grad(y, leaves, u) for y in (value, expected))
        for a, b in zip(found, right, strict=True):
            assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda m, o=options, n=(name, reduce): f"{o} {n}: {m}")
        with torch.no_grad():
            assert_close(module(x), value, rtol=1e-13, atol=1e-13)


CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_OPTIONS = [
    (dims, kernel, stride, dilation, padding, mode, groups, bias)
    for dims in (1, 2, 3)
    for kernel in (1, 3, (2, 3, 2)[:dims])
    for stride in (1, 2)
    for dilation in (1, 2)
    for padding in (0, 1, (0, 2, 1)[:dims], "same", "valid")
    for mode in ("zeros", "reflect", "replicate", "circular")
    for groups in (1, 2)
    for bias in (True, False)
    if not (padding == "same" and stride != 1)
]


@pytest.mark.parametrize("fn", [product, hidden_product, torch.mul], ids=["product", "hidden", "torch.mul"])
def test_multiply_and_sum_is_the_convolution(fn: Any, sweep: Sweep) -> None:
    for dims, kernel, stride, dilation, padding, mode, groups, bias in sweep(CONV_OPTIONS, 12):
        same = {
            "stride": stride,
            "dilation": dilation,
            "padding": padding,
            "padding_mode": mode,
            "groups": groups,
            "bias": bias,
        }
        torch.manual_seed(0)
        conv = CONV[dims](4, 6, kernel, **same, dtype=torch.float64)
        module = CLASSES[dims](fn, 4, 6, kernel, **same, dtype=torch.float64)
        module.load_state_dict(conv.state_dict())
        x = torch.randn(2, 4, *(7, 8, 6)[:dims], dtype=torch.float64, requires_grad=True)
        value, expected = module(x), conv(x)
        u = torch.randn_like(expected)
        assert_close(value, expected, rtol=1e-12, atol=1e-12)
        found, right = (
            torch.autograd.grad(value, [x, *module.parameters()], u),
            torch.autograd.grad(expected, [x, *conv.parameters()], u),
        )
        for a, b in zip(found, right, strict=True):
            assert_close(a, b, rtol=1e-11, atol=1e-11)
        assert_close(module(x[0]), conv(x[0]), rtol=1e-12, atol=1e-12)


def test_the_product_of_tangents_has_the_gradient_of_its_formula() -> None:
    module = ReceptiveFieldConv2d(tangent, 1, 1, (2, 3), reduce="prod", bias=False, dtype=torch.float64)
    x = torch.rand(1, 1, 4, 6, dtype=torch.float64, requires_grad=True)
    out = module(x)
    g = torch.randn_like(out)
    dx, dw = torch.autograd.grad(out, [x, module.weight], g)
    right_x, right_w = torch.zeros(4, 6, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    for p, q, i, j in itertools.product(range(3), range(4), range(2), range(3)):
        a = x.detach()[0, 0, p + i, q + j] + module.weight.detach()[0, 0, i, j]
        d = g[0, 0, p, q] * out.detach()[0, 0, p, q] / (a.tan() * a.cos() ** 2)
        right_x[p + i, q + j] += d
        right_w[i, j] += d
    assert_close(dx[0, 0], right_x, rtol=1e-11, atol=1e-11)
    assert_close(dw[0, 0], right_w, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("zeros", [1, 2])
def test_the_gradient_of_a_product_is_right_where_terms_are_zero(zeros: int) -> None:
    module = ReceptiveFieldConv1d(tangent, 1, 1, 3, reduce="prod", bias=False, dtype=torch.float64)
    x = torch.tensor([[[0.4, 0.5, 0.3, 0.7]]], dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.2, -0.5, -0.3 if zeros == 2 else 0.6]))
    x.requires_grad_()
    case = Case(tangent, (3,), reduce="prod", stride=(1,), dilation=(1,), padding=((0, 0),))
    leaves = [x, module.weight]
    found = torch.autograd.grad(module(x).sum(), leaves, create_graph=True)
    right = torch.autograd.grad(case.run(x, module.weight, None).sum(), leaves, create_graph=True)
    plain = torch.autograd.grad(module(x).sum(), leaves)
    for a, b, c in zip(found, right, plain, strict=True):
        assert_close(a, b, rtol=1e-13, atol=1e-14)
        assert_close(c, b, rtol=1e-13, atol=1e-14)
    assert (right[1] != 0).sum() > 0
    second = [torch.autograd.grad((g**2).sum(), leaves, retain_graph=True) for g in (found[1], right[1])]
    for a, b in zip(*second, strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_a_product_that_underflows_keeps_its_gradient() -> None:
    module = ReceptiveFieldConv1d(plus, 1, 1, 3, reduce="prod", bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.weight.zero_()
    x = torch.tensor([[[1e-120, 1e-150, 1e-140]]], dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(module(x).sum(), x)
    assert_close(g, torch.tensor([[[1e-290, 1e-260, 1e-270]]], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("reduce", "value"), [("max", 1.0), ("min", -1.0)])
def test_tied_extremes_share_the_gradient(reduce: str, value: float) -> None:
    module = ReceptiveFieldConv2d(plus, 2, 3, 3, reduce=reduce, bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.weight.zero_()
    x = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
    x[0, 0, 1, 2] = x[0, 1, 0, 0] = x[0, 1, 2, 2] = value
    x.requires_grad_()
    module(x).sum().backward()
    assert_close(x.grad, torch.where(x.detach() == value, 1.0, 0.0).double(), rtol=1e-14, atol=0)
    assert_close(module.weight.grad, (x.detach() == value).double().expand(3, 2, 3, 3) / 3, rtol=1e-14, atol=0)


def test_max_plus_leaves_padding_out_with_minus_infinity() -> None:
    module = ReceptiveFieldConv2d(
        plus, 1, 1, 3, reduce="max", padding=1, padding_value=-torch.inf, bias=False, init=nn.init.zeros_
    )  # fmt: skip
    x = -torch.rand(2, 1, 5, 4) - 1
    assert_close(module(x), nn.functional.max_pool2d(x, 3, 1, 1), rtol=0, atol=0)


def test_log_sum_exp_of_nothing_but_minus_infinity() -> None:
    module = ReceptiveFieldConv1d(plus, 1, 1, 2, reduce="logsumexp", padding=2, padding_value=-torch.inf, bias=False)
    x = torch.rand(1, 1, 3, requires_grad=True)
    value = module(x)
    assert value[0, 0, 0] == -torch.inf and value[0, 0, -1] == -torch.inf
    value[0, 0, 1:-1].sum().backward()
    assert x.grad is not None and bool(torch.isfinite(x.grad).all()) and x.grad.sum() > 2


def test_a_callable_reduction_sees_the_window_in_the_order_of_the_weight() -> None:
    def alternating(terms: torch.Tensor, dim: int) -> torch.Tensor:
        signs = (-1.0) ** torch.arange(terms.shape[dim], dtype=terms.dtype)
        return (terms.movedim(dim, -1) * signs).sum(-1)

    module = ReceptiveFieldConv2d(product, 3, 2, (1, 3), reduce=alternating, dtype=torch.float64)
    conv = nn.Conv2d(3, 2, (1, 3), dtype=torch.float64)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        conv.bias.copy_(module.bias)
        signs = (-1.0) ** torch.arange(9, dtype=torch.float64)
        conv.weight.copy_((module.weight.flatten(1) * signs).view_as(conv.weight))
    assert_close(module(x), conv(x), rtol=1e-12, atol=1e-12)


def test_a_reduction_that_returns_values_and_indices() -> None:
    module = ReceptiveFieldConv2d(plus, 2, 3, (2, 2), reduce=torch.median, bias=False, init=nn.init.zeros_)
    x = torch.randn(1, 2, 4, 3)
    windows = nn.functional.unfold(x, 2).view(1, 8, 3, 2)
    assert_close(module(x), windows.median(1, keepdim=True).values.expand(1, 3, 3, 2), rtol=0, atol=0)


def test_it_starts_as_a_convolution_does() -> None:
    torch.manual_seed(3)
    module = ReceptiveFieldConv2d(neuron, 6, 40, (3, 5), weight_shape=(2,), groups=2)
    bound = 1 / (3 * 15) ** 0.5
    assert module.weight.shape == (2, 40, 3, 3, 5)
    for parameter in (module.weight, module.bias):
        assert 0.9 * bound < parameter.abs().max() <= bound
    assert (ReceptiveFieldConv1d(plus, 1, 2, 3, init=nn.init.ones_).weight == 1).all()
    assert [name for name, _ in ReceptiveFieldConv1d(plus, 1, 2, 3, bias=False).named_parameters()] == ["weight"]


def test_weights_may_be_parametrized() -> None:
    """Which is where weight standardization and the like belong."""

    class Standardized(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight - weight.mean((1, 2, 3), keepdim=True)

    module = ReceptiveFieldConv2d(tangent, 2, 3, 2, bias=False, dtype=torch.float64)
    plain = copy.deepcopy(module)
    nn.utils.parametrize.register_parametrization(module, "weight", Standardized())
    with torch.no_grad():
        plain.weight.sub_(plain.weight.mean((1, 2, 3), keepdim=True))
    x = torch.rand(2, 2, 4, 5, dtype=torch.float64)
    assert_close(module(x), plain(x), rtol=1e-13, atol=0)
    (found,) = torch.autograd.grad(module(x).sum(), list(module.parameters()))
    (g,) = torch.autograd.grad(plain(x).sum(), plain.weight)
    assert_close(found, g - g.mean((1, 2, 3), keepdim=True), rtol=1e-11, atol=1e-12)


def test_parameters_of_a_function_that_is_a_module_are_trained() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, pixel: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.scale * pixel * weight)

    module = ReceptiveFieldConv2d(Scaled(), 2, 3, 2, dtype=torch.float64)
    assert "fn.scale" in module.state_dict()
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    windows = nn.functional.unfold(x, 2).view(2, 1, 8, 12)
    expected = torch.tanh(module.fn.scale * windows * module.weight.view(1, 3, 8, 1)).sum(2).view(2, 3, 3, 4)
    expected = expected + module.bias.view(-1, 1, 1)
    found, right = (torch.autograd.grad((y**2).sum(), list(module.parameters())) for y in (module(x), expected))
    for a, b in zip(found, right, strict=True):
        assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_parameters_of_a_reduction_are_trained() -> None:
    power = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    module = ReceptiveFieldConv1d(
        lambda p, w: (p - w).abs(), 1, 2, 3, reduce=lambda t, d: (t**power).sum(d), dtype=torch.float64
    )  # fmt: skip
    x = torch.rand(2, 1, 6, dtype=torch.float64)
    (g,) = torch.autograd.grad(module(x).sum(), power)
    terms = (x.unfold(2, 3, 1) - module.weight.detach()[None, :, 0, None]).abs()
    assert_close(g, (terms**1.5 * terms.log()).sum(), rtol=1e-11, atol=0)


def test_copies_pickles_and_shapes() -> None:
    module = ReceptiveFieldConv2d(neuron, 2, 4, 3, weight_shape=(2,), reduce="logsumexp", groups=2)
    x = torch.randn(2, 5, 6)
    value = module(x)
    assert value.shape == (4, 3, 4)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_close(copied(x), value, rtol=0, atol=0)
    assert module(torch.empty(0, 2, 5, 6)).shape == (0, 4, 3, 4)
    assert repr(module) == (
        "ReceptiveFieldConv2d(neuron, 2, 4, kernel_size=(3, 3), weight_shape=(2,), reduce='logsumexp', groups=2)"
    )
    assert "reduce=median, bias=False" in repr(ReceptiveFieldConv1d(plus, 1, 1, 2, reduce=torch.median, bias=False))


def test_dtypes() -> None:
    exact = ReceptiveFieldConv2d(tangent, 8, 4, 3, dtype=torch.float64)
    x = torch.rand(2, 8, 6, 7, dtype=torch.float64)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)):
        module = copy.deepcopy(exact).to(dtype)
        value = module(x.to(dtype))
        assert value.dtype == dtype
        assert_close(value.double(), exact(x), rtol=tolerance, atol=10 * tolerance)
    module = ReceptiveFieldConv2d(hidden_product, 2, 3, 2, dtype=torch.complex128)
    conv = nn.Conv2d(2, 3, 2, dtype=torch.complex128)
    conv.load_state_dict(module.state_dict())
    z = torch.randn(2, 2, 4, 5, dtype=torch.complex128, requires_grad=True)
    for a, b in zip(*(torch.autograd.grad(m(z).abs().sum(), [z, *m.parameters()]) for m in (module, conv)), strict=True):
        assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_complex_product() -> None:
    module = ReceptiveFieldConv1d(plus, 2, 2, 2, reduce="prod", bias=False, dtype=torch.complex128)
    z = torch.randn(2, 2, 4, dtype=torch.complex128, requires_grad=True)
    case = Case(plus, (2,), reduce="prod", stride=(1,), dilation=(1,), padding=((0, 0),))
    pair = (module(z), case.run(z, module.weight, None))
    for a, b in zip(*(torch.autograd.grad(y.abs().sum(), [z, module.weight]) for y in pair), strict=True):
        assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "found"),
    [({"in_channels": 3, "groups": 2}, "groups=2"), ({"out_channels": 0}, "out_channels=0"), ({"groups": True}, "groups=True"),
     ({"kernel_size": (2, 3, 4)}, "kernel_size"), ({"kernel_size": 0}, "kernel_size=0"), ({"stride": 0}, "stride=0"),
     ({"padding": -1}, "padding=-1"), ({"padding": "full"}, "padding='full'"), ({"padding": "same", "stride": 2}, "stride"),
     ({"padding_mode": "mirror"}, "padding_mode='mirror'"),
     ({"padding_mode": "reflect", "padding_value": 1.0}, "padding_value"),
     ({"reduce": "median"}, "reduce='median'"), ({"compile": "replay"}, "compile='replay'"),
     ({"weight_shape": 2}, "weight_shape=2"),
     ({"init": 1}, "init=1"), ({"fn": "mul"}, "fn='mul'"), ({"dilation": 1.5}, "dilation=1.5")],
)  # fmt: skip
def test_options_without_meaning_are_refused(options: dict[str, Any], found: str) -> None:
    arguments = {"fn": product, "in_channels": 2, "out_channels": 4, "kernel_size": 3} | options
    with pytest.raises(StructureError, match=found):
        ReceptiveFieldConv2d(**arguments)


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="strides"):
        ReceptiveFieldConv2d(product, 1, 1, 3, strides=2)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("options", "shape", "found"),
    [({}, (1, 3, 5, 5), r"shape \(1, 3, 5, 5\)"), ({}, (2, 5), r"shape \(2, 5\)"),
     ({}, (1, 2, 2, 9), "spans 3 .* axis 0, .* has 2"),
     ({"dilation": 2, "padding": 1}, (1, 2, 5, 2), "spans 5 .* axis 1, .* has 4"),
     ({"padding": 3, "padding_mode": "reflect"}, (1, 2, 9, 3), r"padding \(3, 3\) along axis 1 of size 3"),
     ({"padding": 4, "padding_mode": "circular"}, (1, 2, 3, 9), r"padding \(4, 4\) along axis 0 of size 3")],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(options: dict[str, Any], shape: tuple[int, ...], found: str) -> None:
    with pytest.raises(StructureError, match=found):
        ReceptiveFieldConv2d(plus, 2, 4, 3, **options)(torch.randn(shape))


def test_integers_are_refused() -> None:
    with pytest.raises(LeafError, match="int64"):
        ReceptiveFieldConv3d(plus, 1, 1, 1)(torch.ones(1, 1, 2, 2, 2, dtype=torch.int64))
    with pytest.raises(LeafError, match="list"):
        ReceptiveFieldConv1d(plus, 1, 1, 1)([[[1.0]]])
    for dtype in (torch.int64, torch.bool, torch.float8_e4m3fn):
        with pytest.raises(LeafError, match=str(dtype)):
            ReceptiveFieldConv1d(plus, 1, 1, 1, dtype=dtype)
