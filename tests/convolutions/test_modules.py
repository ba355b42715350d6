"""Layers as operators, against the layers themselves."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune

from hesse.convolutions import Convolution, TransposedConvolution, convolution
from hesse.core.errors import StructureError, UnsupportedError
from hesse.linalg import pinv, rank

from .torch_oracle import draw, randn

FORWARD = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
Make = Callable[[int], tuple[Any, tuple[int, ...]]]
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def forward(seed: int) -> tuple[Any, tuple[int, ...]]:
    """A layer with random options and the shape of its images."""
    rng, dtype = random.Random(seed), DTYPES[seed % 4]
    while isinstance((drawn := draw(rng)).options["padding"], list):  # layers have none by pairs
        pass
    layer = FORWARD[len(drawn.shape) - 2](
        drawn.shape[0], drawn.weight.shape[0], tuple(drawn.weight.shape[2:]), **drawn.options, bias=False, dtype=dtype
    )
    return layer, drawn.shape


def transposed(seed: int) -> tuple[Any, tuple[int, ...]]:
    """Likewise; every output padding that PyTorch accepts, also one that is more than the stride."""
    rng, dtype = random.Random(seed), DTYPES[seed % 4]
    while True:
        axes = rng.choice((1, 2, 2, 3))
        size, kernel, stride, dilation = (
            tuple(rng.randint(1, most) for _ in range(axes)) for most in ((6, 4, 3)[axes - 1], 3, 3, 3)
        )
        extra = tuple(rng.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True))
        padding = tuple(rng.randint(0, 2) for _ in range(axes))
        out = [
            (m - 1) * s - 2 * p + d * (k - 1) + e + 1
            for m, s, p, d, k, e in zip(size, stride, padding, dilation, kernel, extra, strict=True)
        ]
        if min(out) < 1:
            continue
        groups = rng.choice((1, 1, 2, 3))
        c_in, c_out = groups * rng.randint(1, 2), groups * rng.randint(1, 2)
        options = {"padding": padding, "output_padding": extra, "groups": groups, "dilation": dilation, "stride": stride}
        return TRANSPOSED[axes - 1](c_in, c_out, kernel, **options, bias=False, dtype=dtype), (c_in, *size)


@pytest.mark.parametrize("make", [forward, transposed])
def test_what_the_layer_computes(make: Make, sweep: Callable[..., list[int]]) -> None:
    for seed in sweep(range(1000), 70):
        layer, shape = make(seed)
        A = convolution.from_module(layer, shape)
        dtype = layer.weight.dtype
        assert isinstance(A, Convolution if make is forward else TransposedConvolution)
        assert A.in_space.shapes[0] == shape and A.in_space.dtype == A.out_space.dtype == dtype
        x = randn(3, *shape, dtype=dtype, seed=seed)
        expected = layer(x)
        assert A.out_space.shapes[0] == expected.shape[1:], str(layer)
        size = torch.finfo(dtype).eps * (1 + float(layer.weight.detach().abs().sum()) * float(x.abs().max()))
        assert float((A @ x - expected).detach().abs().max()) <= 10 * size, str(layer)
        y = randn(*expected.shape, dtype=dtype, seed=seed + 1)
        left, right = (y.conj() * (A @ x)).sum(), ((A.H @ y).conj() * x).sum()
        assert float((left - right).detach().abs()) <= 10 * size * float(y.abs().sum())


@pytest.mark.parametrize("make", [forward, transposed])
def test_functions_of_the_parameters(make: Make, sweep: Callable[..., list[int]]) -> None:
    """Derivatives by the weight pass through the operator as through the layer, one weight or many at once."""
    for seed in sweep(range(1, 400, 4), 8):  # float64
        layer, shape = make(seed)
        x = randn(2, *shape, seed=seed)
        own, by_layer = (
            torch.autograd.grad(f.square().sum(), layer.weight)[0]
            for f in (convolution.from_module(layer, shape) @ x, layer(x))
        )
        torch.testing.assert_close(own, by_layer, rtol=1e-11, atol=1e-11)
        weights = randn(3, *layer.weight.shape, seed=seed)

        def products(weight: Tensor, layer: Any = layer, shape: Any = shape, x: Tensor = x) -> Tensor:
            class Probe(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.layer = layer

                def forward(self, x: Tensor) -> Tensor:
                    return convolution.from_module(self.layer, shape) @ x

            return functional_call(Probe(), {"layer.weight": weight}, (x,))

        many = torch.func.vmap(products)(weights)
        for weight, found in zip(weights, many, strict=True):
            torch.testing.assert_close(found, functional_call(layer, {"weight": weight}, (x,)), rtol=1e-11, atol=1e-11)


def test_a_bias() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64)
    with pytest.raises(StructureError, match=r"affine(.|\n)*3 numbers in Conv2d\(2, 3(.|\n)*bias='drop'"):
        convolution.from_module(layer, (2, 4, 5))
    A = convolution.from_module(layer, (2, 4, 5), bias="drop")
    x = randn(2, 4, 5)
    torch.testing.assert_close(A @ x, layer(x) - layer(0 * x), rtol=1e-12, atol=1e-12)
    back = nn.ConvTranspose2d(2, 3, 3, stride=2, dtype=torch.float64)
    B = convolution.from_module(back, (2, 4, 5), bias="drop")
    torch.testing.assert_close(B @ x, back(x) - back(0 * x), rtol=1e-12, atol=1e-12)
    with pytest.raises(StructureError, match="'keep'"):
        convolution.from_module(layer, (2, 4, 5), bias="keep")


def test_parametrized_and_initialized_layers() -> None:
    for wrap in (parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal):
        layer: Any = wrap(nn.Conv1d(2, 4, 3, padding=1, bias=False, dtype=torch.float64)).eval()
        A, x = convolution.from_module(layer, (2, 7)), randn(5, 2, 7)
        torch.testing.assert_close(A @ x, layer(x), rtol=1e-12, atol=1e-12)
        parts = list(layer.parameters())
        for own, by_layer in zip(
            torch.autograd.grad((A @ x).sin().sum(), parts), torch.autograd.grad(layer(x).sin().sum(), parts), strict=True
        ):
            torch.testing.assert_close(own, by_layer, rtol=1e-11, atol=1e-11)
    lazy = nn.LazyConv2d(3, 2, bias=False)
    with pytest.raises(StructureError, match=r"lazy layer(.|\n)*apply it once"):
        convolution.from_module(lazy, (2, 4, 5))
    x = torch.ones(1, 2, 4, 5)
    expected = lazy(x)
    torch.testing.assert_close((convolution.from_module(lazy, (2, 4, 5)) @ x), expected)
    with pytest.raises(StructureError, match="lazy layer"):
        convolution.from_module(nn.LazyConvTranspose1d(3, 2), (2, 4), bias="drop")


def test_options_changed_afterwards() -> None:
    """PyTorch pads by what was given first in all modes but zeros."""
    x = randn(2, 5, 6)
    for mode in ("zeros", "circular", "reflect"):
        layer: Any = nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode=mode, bias=False, dtype=torch.float64)
        layer.padding, layer.stride, layer.in_channels = (0, 1), (2, 1), 77
        torch.testing.assert_close(convolution.from_module(layer, (2, 5, 6)) @ x, layer(x), rtol=1e-12, atol=1e-12)
        layer.padding_mode = "replicate"
        torch.testing.assert_close(convolution.from_module(layer, (2, 5, 6)) @ x, layer(x), rtol=1e-12, atol=1e-12)


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Standardized(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


class Named(nn.Conv2d):
    """Computes what its base does."""


def test_layers_that_compute_something_else() -> None:
    for kind, what in ((Doubled, "a forward of its own"), (Standardized, "a _conv_forward of its own")):
        with pytest.raises(UnsupportedError, match=rf"Conv2d.forward(.|\n)*{kind.__name__}\(1, 1(.|\n)*{what}"):
            convolution.from_module(kind(1, 1, 3), (1, 4, 4))
    patched: Any = nn.Conv2d(1, 1, 3, bias=False)
    patched.forward = lambda x: x
    with pytest.raises(UnsupportedError, match="a forward of its own"):
        convolution.from_module(patched, (1, 4, 4))
    layer = Named(1, 2, 3, bias=False)
    x = torch.ones(1, 4, 4)
    torch.testing.assert_close(convolution.from_module(layer, (1, 4, 4)) @ x, layer(x))
    hooked = nn.Conv2d(1, 2, 3, bias=False)
    hooked.register_forward_hook(lambda module, args, output: 2 * output)
    pruned = prune.random_unstructured(nn.Conv2d(1, 2, 3, bias=False), "weight", amount=0.5)
    for module in (hooked, pruned):
        with pytest.raises(UnsupportedError, match=r"Hooks may change(.|\n)*hooks of Conv2d"):
            convolution.from_module(module, (1, 4, 4))
    prune.remove(pruned, "weight")
    torch.testing.assert_close(convolution.from_module(pruned, (1, 4, 4)) @ x, pruned(x))
    turned: Any = nn.ConvTranspose1d(1, 1, 3, bias=False)
    turned.padding_mode = "circular"
    with pytest.raises(UnsupportedError, match="pads by zeros"):
        convolution.from_module(turned, (1, 4))


def test_what_is_no_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Sequential(nn.ConvTranspose2d(2, 1, 3)))
    with pytest.raises(UnsupportedError, match=r"Sequential(.|\n)*children '0', '2.0'(.|\n)*get_submodule\('0'\)"):
        convolution.from_module(net, (1, 4, 4))
    with pytest.raises(UnsupportedError, match=r"found: Linear\(in_features=2(.|\n)*linearize"):
        convolution.from_module(nn.Linear(2, 2), (2,))
    with pytest.raises(UnsupportedError, match="found: Tensor"):
        convolution.from_module(torch.zeros(1, 1, 3), (1, 4))  # pyright: ignore


def test_images_that_do_not_fit_the_layer() -> None:
    layer, back = nn.Conv2d(2, 3, 3, bias=False), nn.ConvTranspose2d(2, 3, 3, padding=2, bias=False)
    for shape in ((3, 5, 5), (2, 5), (1, 2, 5, 5), (2, 2, 5), (2, 0, 5)):
        with pytest.raises(StructureError):
            convolution.from_module(layer, shape)
        if shape != (2, 2, 5):
            with pytest.raises(StructureError):
                convolution.from_module(back, shape)
    with pytest.raises(StructureError, match=r"at least one cell(.|\n)*0 at spatial axis 1 for an input of 2"):
        convolution.from_module(back, (2, 3, 2))
    much = nn.ConvTranspose1d(1, 1, 3, stride=2, output_padding=2, bias=False)
    with pytest.raises(RuntimeError):
        much(torch.ones(1, 4))
    with pytest.raises(StructureError, match="output_padding 2, stride 2, dilation 1"):
        convolution.from_module(much, (1, 4))


@pytest.mark.parametrize("make", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_layer_of_another_dtype_needs_another_operator(make: Any) -> None:
    """The parameter is the same object, and the images are still those of single precision."""
    layer = make(2, 3, 3, bias=False)
    A = convolution.from_module(layer, (2, 5, 6))
    before = [A, A.T, A.H @ A, pinv(A)]
    layer.double()
    for operator in before:
        with pytest.raises(StructureError, match=r"float64(.|\n)*float32(.|\n)*make the operator again"):
            _ = operator @ torch.zeros(operator.in_space.shapes[0])
    for question in (pinv, rank):
        with pytest.raises(StructureError, match="make the operator again"):
            question(A)
    x = randn(2, 5, 6)
    torch.testing.assert_close(convolution.from_module(layer, (2, 5, 6)) @ x, layer(x).detach(), rtol=1e-12, atol=1e-12)
    layer.float()
    torch.testing.assert_close(A @ x.float(), layer(x.float()).detach())
