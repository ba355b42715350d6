"""Tangents along a recorded graph, against `torch.func.jvp` of the function and against loops of reverse mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hesse.autodiff.linearize import linearize
from hesse.autodiff.push import GraphPush
from hesse.autodiff.push_rules import RULES, SYMMETRIC, NoPushError
from hesse.autodiff.recording import nodes, record

from .programs import REAL, ReverseOnlySquare, by_loops, seeded

K, T = seeded(4, 3, 2, 3, seed=5), seeded(3, 2, 3, 2, seed=6)
INDEX = torch.tensor([[2, 0, 2], [1, 2, 0]])


def images(x: Tensor) -> Tensor:
    return x.reshape(2, 3, 4, 5)


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "linear with all parts moving": lambda x: F.linear(x[:6].view(2, 3), x[6:18].reshape(4, 3), x[18:22]),
    "linear, bias alone": lambda x: F.linear(seeded(3, 2), seeded(4, 2, seed=1), x[:4]),
    "scaled addmm": lambda x: torch.addmm(x[:4], x[:6].view(2, 3), x[6:18].view(3, 4), beta=0.5, alpha=-2.0),
    "addmm, bias scaled alone": lambda x: torch.addmm(x[:4], seeded(2, 3), seeded(3, 4), beta=3),
    "addmm, one factor": lambda x: torch.addmm(seeded(4), seeded(2, 3), x[:12].view(3, 4), alpha=1.5),
    "matrix products": lambda x: (x[:6].view(2, 3) @ seeded(3, 4) @ x[:12].view(4, 3)).t() @ x[:8].view(2, 4),
    "batched products": lambda x: torch.bmm(x[:12].view(2, 2, 3), x[12:30].view(2, 3, 3)) @ seeded(2, 3, 2),
    "batched products, the right one": lambda x: torch.bmm(seeded(2, 2, 3), x[:12].view(2, 3, 2)),
    "attention": lambda x: torch.softmax(x[:24].view(2, 3, 4) @ x[:24].view(2, 3, 4).transpose(-2, -1) / 2, -1),
    "convolution": lambda x: F.conv2d(images(x), K * x[3], x[:4], stride=(2, 1), padding=1, dilation=(1, 2)),
    "convolution, weight alone": lambda x: F.conv2d(seeded(2, 3, 4, 5), x[:36].reshape(2, 3, 2, 3), None),
    "convolution, bias alone": lambda x: F.conv2d(seeded(2, 3, 4, 5), K, x[:4]),
    "transposed convolution": lambda x: F.conv_transpose2d(images(x), T, x[:2], stride=2, output_padding=1),
    "layer norm": lambda x: F.layer_norm(x.view(6, 4, 5), (4, 5), x[:20].view(4, 5), x[20:40].view(4, 5)),
    "layer norm, x alone": lambda x: F.layer_norm(x.view(24, 5), (5,)),
    "layer norm, weighted": lambda x: F.layer_norm(x.view(24, 5), (5,), seeded(5, seed=2), seeded(5, seed=3)),
    "layer norm, parameters alone": lambda x: F.layer_norm(seeded(6, 5), (5,), x[:5], x[5:10]),
    "layer norm, weight alone": lambda x: F.layer_norm(seeded(6, 5), (5,), x[:5]),
    "max pool": lambda x: F.max_pool2d(images(x), 2, stride=1, padding=1),
    "max pool of one dimension": lambda x: F.max_pool1d(x.view(4, 30), 3),
    "embedding": lambda x: F.embedding(INDEX, x[:12].view(3, 4)),
    "sums": lambda x: x[:6].view(2, 3) + x[6:9] - torch.sub(x[9:12], x[:1], alpha=3) + torch.add(2.0, x[:1], alpha=2) - 1,
    "differences with a constant": lambda x: seeded(3) - x[:3] + (1 - x[3:6]) + torch.add(seeded(3), x[:3], alpha=-2),
    "products": lambda x: x[:6].view(2, 3) * x[6:9] * 2.0 * seeded(3) * x[0],
    "quotients": lambda x: x[:3] / seeded(3) / (x[3:6].square() + 1) + 2.0 / x[6:9].exp(),
    "shapes": lambda x: x.view(2, 3, 4, 5).transpose(1, -1).flatten(1).unsqueeze(1).expand(2, 3, 60).clone().squeeze(),
    "smooth functions": lambda x: F.gelu(x) + F.silu(x).tanh() + F.softplus(x).sqrt() + F.mish(x).sigmoid() + F.elu(x).exp(),
    "more of them": lambda x: (x.sin() + 2).log() + x.cos().erf() - (x.abs() + 1).rsqrt() + (x.exp() + 1).reciprocal() + -x,
    "pieces": lambda x: F.relu(x) + F.leaky_relu(x, 0.3) + F.hardtanh(x) + F.threshold(x, 0.1, 2.0),
    "without a rule": lambda x: torch.cat([x.cumsum(0), x.view(2, -1).logsumexp(1), x.prod().reshape(1), x[x > 0]]),
    "reductions": lambda x: x.view(2, -1).mean(1) + x.view(-1, 2).sum(0) + x.norm() + F.log_softmax(x, 0)[:2],
    "several outputs of a node": lambda x: [part * (k + 1) for k, part in enumerate(x.split([50, 30, 40])) if k != 1],
    "a function of the user's": lambda x: torch.sin(ReverseOnlySquare.apply(x) * x[0]),
    "written in place": lambda x: x.clone().index_fill_(0, torch.tensor([1, 3]), 0.0).mul_(x).relu_(),
    "a part written in place": lambda x: torch.zeros(3, 4, dtype=REAL).index_put((torch.tensor([0, 2]),), x[:4]),
    "an output that is constant": lambda x: (x.sin(), torch.ones(2, dtype=REAL), x[:3].detach()),
    "an output that is the input": lambda x: (x, x.view(2, -1)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tangents_equal_those_of_reverse_mode(name: str) -> None:
    f, x, v = FUNCTIONS[name], seeded(120, seed=9), seeded(120, seed=10)
    run = record(f, x, "")
    pushed = GraphPush(run).push([v])
    assert len(pushed) == len(run.outputs)
    for k, (y, t) in enumerate(zip(run.outputs, pushed, strict=True)):
        J = by_loops(lambda x, k=k: leaves(f(x))[k] + 0 * x.sum(), x)
        assert t.shape == y.shape and t.dtype == y.dtype and not t.requires_grad
        torch.testing.assert_close(t, (J.reshape(-1, 120) @ v).reshape(y.shape), rtol=1e-11, atol=1e-11)


def leaves(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def test_every_rule_is_met_by_a_function_above() -> None:
    met: set[str] = set()
    for f in FUNCTIONS.values():
        met |= {node.name() for node in nodes([y.grad_fn for y in record(f, seeded(120, seed=9), "").outputs])}
    met |= {"SqueezeBackward1", "SqueezeBackward2", "ReshapeAliasBackward0"}  # tested below, and made by no function of PyTorch
    assert set(RULES) | SYMMETRIC <= met


def test_several_inputs_of_a_recurrent_use() -> None:
    def f(p: dict[str, Tensor]) -> Tensor:
        h = p["h"]
        for _ in range(3):
            h = torch.tanh(F.linear(h, p["W"], p["b"]).squeeze(0).squeeze((0,)).unsqueeze(0))
        return h

    x = {"h": seeded(1, 4), "W": seeded(4, 4, seed=1), "b": seeded(4, seed=2), "unused": seeded(2)}
    v = {name: seeded(*p.shape, seed=k + 5) for k, (name, p) in enumerate(x.items())}
    run = record(f, x, "")
    (found,) = GraphPush(run).push(list(v.values()))
    torch.testing.assert_close(found, torch.func.jvp(f, (x,), (v,))[1], rtol=1e-12, atol=1e-12)


def test_padding_of_an_embedding_follows_reverse_mode() -> None:
    layer = nn.Embedding(3, 4, padding_idx=2).double()
    W, v = seeded(3, 4), seeded(3, 4, seed=1)
    for scaled in (False, True):
        run = record(lambda W, s=scaled: F.embedding(INDEX, W, layer.padding_idx, scale_grad_by_freq=s), W, "")
        push = GraphPush(run)
        if scaled:
            with pytest.raises(NoPushError):
                push.push([v])
        else:
            expected = v[INDEX] * (INDEX != 2).unsqueeze(-1)
            assert torch.equal(push.push([v])[0], expected)


def test_dtypes_change_on_the_way() -> None:
    x, v = seeded(6).float(), seeded(6, seed=1).float()
    run = record(lambda x: (F.softmax(x, 0, dtype=REAL), x.double().relu(), (x.bfloat16() * 2).float()), x, "")
    for y, t in zip(run.outputs, GraphPush(run).push([v]), strict=True):
        assert t.dtype == y.dtype
    expected = torch.func.jvp(lambda x: F.softmax(x.double(), 0), (x,), (v,))[1]
    torch.testing.assert_close(GraphPush(run).push([v])[0], expected, rtol=1e-6, atol=1e-7)


def test_checkpoints_and_complex_numbers_are_refused_and_go_another_way() -> None:
    W = seeded(5, 3)

    def checkpointed(x: Tensor) -> Tensor:
        y: Any = checkpoint(lambda x: torch.tanh(W @ x), x, use_reentrant=False)
        return y * 2

    with pytest.raises(NoPushError, match="hooks"):
        GraphPush(record(checkpointed, seeded(3), ""))
    with pytest.raises(NoPushError, match="complex"):
        GraphPush(record(lambda z: z * z, seeded(3) + 0j, ""))
    found = linearize(checkpointed, seeded(3)).jacobian @ seeded(3, seed=1)
    torch.testing.assert_close(found, by_loops(lambda x: 2 * torch.tanh(W @ x), seeded(3)) @ seeded(3, seed=1))


def test_products_that_are_differentiated_themselves() -> None:
    x, v = seeded(4).requires_grad_(), seeded(4, seed=1).requires_grad_()
    J = linearize(lambda x: torch.relu(x) * x, x).jacobian
    found = torch.autograd.grad((J @ v).sum(), (x, v))
    y, w = x.detach().requires_grad_(), v.detach().requires_grad_()
    expected = torch.autograd.grad((2 * torch.relu(y) * w).sum(), (y, w))
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def test_a_tensor_changed_after_the_run_is_noticed() -> None:
    c = seeded(4)
    J = linearize(lambda x: x * c, seeded(4)).jacobian
    J @ seeded(4)
    c.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        J @ seeded(4)
