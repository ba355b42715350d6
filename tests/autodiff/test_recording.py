"""One run of a function: what is refused before it, and what its graph tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hesse.autodiff.dependence.function import dependence
from hesse.autodiff.recording import inside_functorch, inside_vmap, node_outputs, nodes, record
from hesse.core.errors import DeviceError, HesseError, LeafError, NonFiniteError, StructureError, UnsupportedError

from .programs import REAL, seeded

NAN = torch.tensor([1.0, float("nan")])
BAD: list[tuple[Callable[..., Any], Any, type[HesseError], str]] = [
    (lambda p: p["w"][0] * 2, {"w": [torch.arange(3)]}, LeafError, r"torch.int64 at 'w.0'"),
    (lambda p: p * 2, torch.tensor([True]), LeafError, r"torch.bool at 'x'"),
    (lambda p: p["w"][1] * 2, {"w": [torch.ones(2), NAN]}, NonFiniteError, r"NaN in the input at 'w.1'"),
    (lambda p: p["a"] * 2, {"a": torch.ones(2), "b": torch.ones(2, device="meta")}, DeviceError, r"'b' on meta"),
    (lambda p: torch.ones(2), {"a": 3, "b": None}, StructureError, "no tensor or float"),
    (lambda p: None, torch.ones(2), StructureError, "returned NoneType"),
    (lambda p: {"y": [p.argmax()]}, torch.ones(2), LeafError, r"torch.int64 at 'y.0'"),
    (lambda p: p > 0, torch.ones(2), LeafError, r"torch.bool at 'its value'"),
    (torch.ones(()), torch.ones(2), StructureError, "already computed tensor(.|\n)*pass the function"),
    ("text", torch.ones(2), StructureError, "str in the place of the function"),
]


@pytest.mark.parametrize(("f", "x", "error", "message"), BAD)
def test_bad_input_is_refused_by_name(f: Any, x: Any, error: type[HesseError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        record(f, x, "A test asks for this.")
    assert str(caught.value).startswith("A test asks for this.")


def test_a_function_that_changes_its_argument_is_refused() -> None:
    def hidden(t: Tensor) -> Tensor:
        with torch.no_grad():
            t.mul_(2)
        return t.sin()

    with pytest.raises(StructureError, match="changed 'w' in place"):
        record(lambda p: hidden(p["w"]), {"w": seeded(3)}, "")
    upstream = seeded(3).requires_grad_() * 1
    with pytest.raises(StructureError, match="changed 'x' in place"):
        record(lambda t: t.mul_(2).sin(), upstream, "")


def test_writes_that_pytorch_refuses_are_named() -> None:
    def writes(x: Tensor) -> Tensor:
        x += x.roll(1)
        return x * 2

    x = torch.rand(3)
    for ask in (lambda: record(writes, x, "a record"), lambda: dependence(writes, x, "a pattern")):
        with pytest.raises(StructureError, match=r"writes to its input(.|\n)*x\.clone\(\)"):
            ask()


def test_inference_mode_is_refused_and_inference_tensors_are_taken() -> None:
    with torch.inference_mode():
        x = torch.ones(3)
        with pytest.raises(UnsupportedError, match=r"torch.no_grad"):
            record(torch.sin, x, "")
    torch.testing.assert_close(record(torch.sin, x, "").pull([torch.ones(3)])[0], torch.cos(torch.ones(3)))


def test_the_users_error_passes_through() -> None:
    def f(t: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        record(f, torch.ones(2), "")


def test_another_default_device_moves_nothing() -> None:
    x = seeded(3)
    with torch.device("meta"):
        run = record(lambda t: t**2, x, "")
    assert run.inputs[0].device.type == run.outputs[0].device.type == "cpu"


def test_attached_follows_the_grad_mode_and_what_requires_grad() -> None:
    x, w = seeded(3), seeded(3, seed=1).requires_grad_()
    assert not record(lambda t: t * 2, x, "").attached
    assert record(lambda t: t * w, x, "").attached
    assert record(lambda t: t * (w * 2), x, "").attached
    assert record(lambda t: t * 2, x.clone().requires_grad_(), "").attached
    with torch.no_grad():
        assert not record(lambda t: t * w, x, "").attached
        assert not record(lambda t: t * 2, w, "").attached


def test_rounding_is_that_of_the_coarsest_value() -> None:
    x = seeded(3)
    assert record(torch.sin, x, "").rounding() == torch.finfo(REAL).eps
    assert record(lambda t: t.float().sin().double(), x, "").rounding() == torch.finfo(torch.float32).eps
    assert record(lambda t: t.bfloat16().sin().double(), x, "").rounding() == torch.finfo(torch.bfloat16).eps


def test_transforms_are_noticed() -> None:
    seen: list[tuple[bool, bool]] = []

    def look(t: Tensor) -> Tensor:
        seen.append((inside_functorch(), inside_vmap()))
        return t.sum()

    look(torch.ones(2))
    torch.func.grad(look)(torch.ones(2))
    torch.func.vmap(look)(torch.ones(2, 2))
    torch.func.vmap(torch.func.grad(look))(torch.ones(2, 2))
    assert seen == [(False, False), (True, False), (True, True), (True, True)]


class Three(torch.autograd.Function):
    """Twice x, its order, and nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, None]:
        order = x.argsort()
        ctx.mark_non_differentiable(order)
        return x * 2, order, None

    @staticmethod
    def backward(ctx: Any, g: Tensor, *rest: Any) -> Tensor:
        return 2 * g


def test_every_node_tells_its_outputs() -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        double, order, _ = Three.apply(x)
        buffer = torch.zeros(6, dtype=REAL)
        buffer[1:5] = torch.utils.checkpoint.checkpoint(torch.sin, double, use_reentrant=False)
        halves = buffer.split(3)
        table = F.embedding(order, halves[0].reshape(3, 1).expand(3, 2).repeat(2, 1))
        return table.sum() + halves[1].norm(), torch.sparse.mm(torch.eye(4, dtype=REAL).to_sparse(), double[:, None])

    x = seeded(4)
    run = record(f, x, "")
    met = list(nodes([y.grad_fn for y in run.outputs]))
    assert len(met) == len({id(node) for node in met}) > 10
    for node in met:
        assert all(meta.shape is not None and meta.dtype is not None for meta in node_outputs(node)), node
    assert run.graph_bytes() > 8 * 4
    wide = record(lambda t: torch.sin(t.expand(100, 4)), x, "")
    assert 100 * 4 * 8 <= wide.graph_bytes() <= 3 * 100 * 4 * 8
