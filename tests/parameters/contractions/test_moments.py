"""Kronecker moments against their definitions, written with inputs and cotangents from hooks, and where they are exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.core.errors import UnsupportedError
from tests.parameters import oracle
from tests.parameters.special import Free, L, P

SUM = nn.MSELoss(reduction="sum")


def _watched(model: nn.Module, layer: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The input of a layer and the cotangent of its output, by hooks."""
    seen: dict[str, Tensor] = {}

    def forward(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen["z"] = inputs[0].detach()
        output.register_hook(lambda g: seen.__setitem__("g", g.detach()))

    handle = layer.register_forward_hook(forward)
    SUM(model(x), y).backward()
    handle.remove()
    model.zero_grad()
    return seen["z"], seen["g"]


def _factors(layer: nn.Module, z: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """``[n, t, O]`` and ``[n, t, I]`` of a linear layer or a convolution (padded by 1)."""
    if isinstance(layer, nn.Conv2d):
        patches = nn.functional.unfold(z, layer.kernel_size, layer.dilation, 1, layer.stride)
        return g.flatten(2).mT, patches.mT
    return g.reshape(len(g), -1, g.shape[-1]), z.reshape(len(z), -1, z.shape[-1])


CASES: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...]]] = {}
for _name, _layer, _shape in (
    ("linear", L(5, 4), (5,)),
    ("linear with positions", L(5, 4), (7, 5)),
    ("convolution", nn.Conv2d(2, 4, (2, 3), padding=1, stride=2), (2, 5, 4)),
):
    CASES[_name] = (nn.Sequential(_layer, nn.Tanh(), nn.Flatten(1), nn.LazyLinear(3)).double(), _layer, _shape)


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("name", CASES)
def test_definitions(name: str, approximation: Any) -> None:
    model, layer, shape = CASES[name]
    x, y = torch.randn(6, *shape, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    model(x)
    g, z = _factors(layer, *_watched(model, layer, x, y))
    n, t = g.shape[:2]
    if approximation == "expand":
        expected = torch.kron(torch.einsum("nta,ntb->ab", g, g), torch.einsum("nta,ntb->ab", z, z) / (n * t))
    else:
        expected = torch.kron(
            torch.einsum("nsa,ntb->ab", g, g), torch.einsum("nsa,ntb->ab", z.mean(1, keepdim=True), z.mean(1, keepdim=True)) / n
        )
    J = hesse.parameter_jacobian(model, SUM, (x, y), params=["0.weight", "0.bias"])
    found = J.moments(approximation)
    assert found["0.weight"].kind == "kronecker" and found["0.bias"].kind == "exact"
    assert oracle.difference(found["0.weight"].dense(), expected) < 1e-12
    bias = g.sum(1)
    assert oracle.difference(found["0.bias"].dense(), bias.mT @ bias) < 1e-12


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("loss", [SUM, None])
def test_exact_for_one_sample_and_one_position(approximation: Any, loss: Any) -> None:
    model = Free(lambda s, x: s.b(torch.tanh(s.a(x)).unflatten(1, (4, 1)).flatten(1)), a=L(5, 4), b=L(4)).double()
    x, y = torch.randn(1, 5, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    J = hesse.parameter_jacobian(model, loss, (x, y))
    rows = J.as_dict()
    for name, moments in J.moments(approximation).items():
        flat = rows[name].reshape(-1, *rows[name].shape[1:]).reshape(1 if loss else 3, -1)
        assert oracle.difference(moments.dense(), flat.mT @ flat) < 1e-12


def test_groups_of_a_convolution_are_blocks() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    x, y = torch.randn(1, 4, 2, 2, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)  # one position
    model(x)
    J = hesse.parameter_jacobian(model, SUM, (x, y), params=["0.weight"])
    rows = oracle.loss_rows(model, SUM, x, y)[:, : 6 * 2 * 4]
    exact = rows.mT @ rows
    found = J.moments()["0.weight"]
    assert found.left.shape == (2, 3, 3) and found.right.shape == (2, 8, 8)
    assert oracle.difference(found.dense(), torch.block_diag(exact[:24, :24], exact[24:, 24:])) < 1e-12


def test_outputs_add_up() -> None:
    model = L(5, 3).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    found = hesse.parameter_jacobian(model, None, x).moments()["weight"]
    assert oracle.difference(found.dense(), torch.kron(torch.eye(3).double() * 6, x.mT @ x / 6)) < 1e-12


def test_an_embedding_counts_its_tokens() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(1), L(12)).double()
    x, y = torch.randint(0, 4, (6, 3)), torch.randn(6, 3, dtype=torch.float64)
    _, g = _watched(model, model[0], x, y)
    onehot = nn.functional.one_hot(x, 5).double().flatten(0, 1)
    J = hesse.parameter_jacobian(model, SUM, (x, y), params=["0.weight"])
    expected = torch.kron(onehot.mT @ onehot, torch.einsum("nta,ntb->ab", g, g) / 18)
    assert oracle.difference(J.moments()["0.weight"].dense(), expected) < 1e-12
    with pytest.raises(UnsupportedError, match="reduce"):
        J.moments("reduce")


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_padding_tokens_are_not_counted(kind: type[nn.Embedding | nn.EmbeddingBag]) -> None:
    options: dict[str, Any] = {} if kind is nn.Embedding else {"mode": "sum"}
    model = nn.Sequential(kind(5, 3, padding_idx=1, **options), nn.Flatten(1)).double()
    J = hesse.parameter_jacobian(model, None, torch.tensor([[3, 4, 1], [4, 1, 1], [2, 2, 3]]))
    counts = torch.bincount(torch.tensor([3, 4, 4, 2, 2, 3]), minlength=5).double()
    found = J.moments()["0.weight"].left[0]
    assert oracle.difference(found / found.sum(), counts / counts.sum()) < 1e-12


def test_a_parameter_in_several_roles_is_refused_by_name() -> None:
    model = Free(lambda s, t: s.e(t).sum(1) @ s.e.weight.mT, e=nn.Embedding(4, 3)).double()
    J = hesse.parameter_jacobian(model, None, torch.randint(0, 4, (6, 2)))
    with pytest.raises(UnsupportedError, match=r"'e\.weight' is used in several ways"):
        J.moments()
    chained = Free(lambda s, x: x @ s.w**2, w=P(5, 3)).double()
    with pytest.raises(UnsupportedError, match="'w'"):
        hesse.parameter_jacobian(chained, None, torch.randn(6, 5).double()).moments()


def test_streamed_and_selected() -> None:
    model, _, shape = CASES["linear with positions"]
    x, y = torch.randn(6, *shape, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    model(x)
    kept = hesse.parameter_jacobian(model, SUM, (x, y))
    streamed = hesse.parameter_jacobian(model, SUM, (x, y), records="streamed")
    few = hesse.parameter_jacobian(model, SUM, (x[[4, 1]], y[[4, 1]]))
    for found, expected in ((streamed, kept), (kept.select([4, 1]), few), (streamed.select([4, 1]), few)):
        for name, moments in expected.moments().items():
            assert oracle.difference(found.moments()[name].dense(), moments.dense()) < 1e-12
