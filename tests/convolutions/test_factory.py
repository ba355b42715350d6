"""Arguments of `hesse.convolution`: what PyTorch accepts and refuses is accepted, and refused by errors that say why."""

from __future__ import annotations

import inspect
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hesse.convolutions import convolution
from hesse.core.errors import HesseError, LeafError, StructureError

from .torch_oracle import randn

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def wild(rng: random.Random) -> dict[str, Any]:
    """Options that may or may not fit together."""
    axes = rng.choice((1, 2, 3))
    odd = rng.random() < 0.15
    mode = rng.choice(("zeros", "circular", "reflect", "replicate", "mirror" if odd else "zeros"))

    def numbers(most: int, least: int = 1) -> Any:
        least -= odd and (least > 0 or mode == "zeros")  # in other modes PyTorch lets a negative padding crop
        form = rng.choice(("one", "each", "single" if mode == "zeros" else "each"))  # layers misread (2,) in other modes
        if form == "one":
            return rng.randint(least, most)
        return tuple(rng.randint(least, most) for _ in range(axes if form == "each" else 1))

    return {
        "in_channels": rng.randint(1, 4),
        "out_channels": rng.randint(1, 4),
        "kernel_size": tuple(rng.randint(1, 4) for _ in range(axes)),
        "stride": numbers(3),
        "padding": rng.choice((numbers(4, 0), numbers(2, 0), "same", "valid", "full" if odd else "same")),
        "padding_mode": mode,
        "dilation": numbers(2),
        "groups": rng.choice((1, 1, 2, 3, 0 if odd else 1)),
        "size": tuple(rng.randint(1, 6) for _ in range(axes)),
    }


def by_torch(options: dict[str, Any]) -> tuple[nn.Module, torch.Size] | None:
    """The layer and the shape of what it gives, or None if it refuses."""
    options = dict(options)
    size = options.pop("size")
    try:
        with torch.no_grad():
            layer = LAYERS[len(size) - 1](**options, bias=False, dtype=torch.float64)
            return layer, layer(torch.zeros(1, options["in_channels"], *size, dtype=torch.float64)).shape[1:]
    except (RuntimeError, ValueError, IndexError, AssertionError, ZeroDivisionError):
        return None


def test_accepted_and_refused_as_by_torch(sweep: Callable[..., list[int]]) -> None:
    seen = {True: 0, False: 0}
    for seed in sweep(range(4000), 400):
        options = wild(random.Random(seed))
        known = by_torch(options)
        groups = max(options["groups"], 1)
        weight = torch.zeros(options["out_channels"], max(options["in_channels"] // groups, 1), *options["kernel_size"])
        weight = weight.double() if known is None else known[0].weight
        shape = (options["in_channels"], *options["size"])
        own = {name: options[name] for name in ("stride", "padding", "padding_mode", "dilation", "groups")}
        seen[known is not None] += 1
        if known is None:
            with pytest.raises(HesseError):
                print(options)
                convolution(weight, shape, **own)  # pyright: ignore
            continue
        A = convolution(weight, shape, **own)  # pyright: ignore
        assert A.out_space.shapes[0] == known[1], options
        x = randn(*shape, seed=seed)
        torch.testing.assert_close(A @ x, known[0](x[None])[0], rtol=1e-12, atol=1e-12)
    assert min(seen.values()) > 30, seen  # a quarter of the draws is accepted


W = randn(4, 2, 3, 3)
REFUSED = {
    "integers": (torch.ones(4, 2, 3, 3, dtype=torch.int64), (2, 5, 5), {}, LeafError, "found: torch.int64"),
    "eight bits": (W.to(torch.float8_e4m3fn), (2, 5, 5), {}, LeafError, "found: torch.float8_e4m3fn"),
    "complex halves": (W.to(torch.complex32), (2, 5, 5), {}, LeafError, "found: torch.complex32"),
    "sparse": (W.to_sparse(), (2, 5, 5), {}, LeafError, "found: torch.sparse_coo"),
    "no tensor": ([[1.0]], (1, 5), {}, LeafError, "found: list"),
    "a bare kernel": (randn(3, 3), (1, 5, 5), {}, StructureError, r"kernel\[None, None\]"),
    "four axes": (randn(1, 1, 2, 2, 2, 2), (1, 3, 3, 3, 3), {}, StructureError, "one to three axes"),
    "no filter": (randn(0, 2, 3), (2, 5), {}, StructureError, r"found: shape \[0, 2, 3\]"),
    "no channel": (randn(2, 0, 3), (0, 5), {}, StructureError, r"found: shape \[2, 0, 3\]"),
    "the size alone": (W, (5, 5), {}, StructureError, "put the number of channels in front"),
    "a batch": (W, (8, 2, 5, 5), {}, StructureError, "leave out the batch axis"),
    "a number": (W, 5, {}, StructureError, r"is \(in_channels, \*size\)(.|\n)*found: 5"),
    "an empty image": (W, (2, 0, 5), {}, StructureError, "at least 1(.|\n)*found: 0"),
    "a fraction": (W, (2, 5.0, 5), {}, StructureError, "whole number(.|\n)*found: 5.0"),
    "channels": (W, (3, 5, 5), {}, StructureError, r"so 2 channels, and 3 in input_shape"),
    "channels of groups": (W, (2, 5, 5), {"groups": 2}, StructureError, "groups=2, so 4 channels, and 2 in"),
    "groups that do not divide": (W, (6, 5, 5), {"groups": 3}, StructureError, "4 output channels, and groups=3"),
    "no group": (W, (2, 5, 5), {"groups": 0}, StructureError, "groups is a whole number, at least 1"),
    "stride zero": (W, (2, 5, 5), {"stride": 0}, StructureError, "stride is a whole number, at least 1"),
    "a stride too many": (W, (2, 5, 5), {"stride": (1, 1, 1)}, StructureError, "each of the 2 spatial axes"),
    "a negative dilation": (W, (2, 5, 5), {"dilation": (1, -1)}, StructureError, "Each dilation is a whole(.|\n)*found: -1"),
    "a negative padding": (W, (2, 5, 5), {"padding": -1}, StructureError, "padding is a whole number, at least 0"),
    "half a pair": (W, (2, 5, 5), {"padding": [(1,), (1, 1)]}, StructureError, r"\(before, after\)(.|\n)*found: \(1,\)"),
    "a pair too few": (W, (2, 5, 5), {"padding": [(1, 1)]}, StructureError, "for 2 axes"),
    "no such padding": (W, (2, 5, 5), {"padding": "full"}, StructureError, "padding='full'"),
    "no such mode": (W, (2, 5, 5), {"padding_mode": "mirror"}, StructureError, "'mirror'(.|\n)*'replicate'"),
    "same and strided": (W, (2, 5, 5), {"padding": "same", "stride": (1, 2)}, StructureError, r"stride=\(1, 2\)"),
    "around twice": (W, (2, 5, 3), {"padding": 4, "padding_mode": "circular"}, StructureError, "axis 1, of size 3"),
    "reflected too far": (W, (2, 5, 3), {"padding": 3, "padding_mode": "reflect"}, StructureError, "smaller than the image"),
    "a large kernel": (W, (2, 6, 2), {}, StructureError, "spans 3 cells (.|\n)*padded image of 2 cells, at spatial axis 1"),
    "a wide kernel": (W, (2, 5, 5), {"dilation": 3}, StructureError, "spans 7 cells .kernel 3, dilation 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    weight, shape, options, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        convolution(weight, shape, **options)


def test_forms_of_sizes() -> None:
    A = convolution(W, torch.Size((2, 5, 6)), stride=[2, 1], padding=torch.tensor(1), dilation=torch.tensor(1))  # pyright: ignore
    assert A.geometry.stride == (2, 1) and A.geometry.padding == ((1, 1), (1, 1))
    assert convolution(W, [2, 5, 6], padding=[1, (0, 2)]).geometry.padding == ((1, 1), (0, 2))
    assert convolution(randn(1, 1, 4), (1, 9), padding="same", dilation=3).geometry.padding == ((4, 5),)


def test_the_factory_as_a_value() -> None:
    assert repr(convolution) == "hesse.convolution"
    assert pickle.loads(pickle.dumps(convolution)) is convolution
    assert list(inspect.signature(convolution).parameters) == [
        *("weight", "input_shape", "stride", "padding", "padding_mode", "dilation", "groups")
    ]
    assert list(inspect.signature(convolution.from_module).parameters) == ["module", "input_shape", "bias"]
    for said in (convolution, convolution.from_module, type(convolution).__call__):
        assert inspect.getdoc(said)
