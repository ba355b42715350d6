"""Layers that have rules: right in every memory layout, and by the rule, not by the exact path underneath it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.rules.layers import SampleAxis
from hesse.rules.layers.convolution import Patches
from tests.parameters import oracle
from tests.parameters.special import Free, P

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "linear on sequences": (lambda: nn.Linear(5, 3), (4, 5)),
    "linear on images": (lambda: nn.Linear(5, 3), (2, 4, 5)),
    "linear without bias on sequences": (lambda: nn.Linear(5, 3, bias=False), (4, 5)),
    "x @ W": (lambda: Free(lambda s, x: x @ s.w, w=P(5, 3)), (5,)),
    "W @ x": (lambda: Free(lambda s, x: (s.w @ x.T).T, w=P(3, 5)), (5,)),
    "addmm": (lambda: Free(lambda s, x: torch.addmm(s.v, x, s.w, beta=0.5, alpha=2.0), w=P(5, 3), v=P(3)), (5,)),
    "sum, difference, product": (lambda: Free(lambda s, x: (x.add(s.u, alpha=2) - s.v.sub(x, alpha=3)) * s.w,
                                              u=P(5), v=P(4, 1), w=P(1, 1, 5)), (4, 5)),
    "expanded": (lambda: Free(lambda s, x: torch.cat([x, s.w.expand(len(x), 4, 2)], 2), w=P(1, 4, 2)), (4, 5)),
    "convolution": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (4, 6, 7)),
    "convolution on lines": (lambda: nn.Conv1d(4, 6, 3, padding=1, bias=False), (4, 7)),
    "convolution of volumes": (lambda: nn.Conv3d(2, 3, (1, 2, 3), stride=(1, 2, 1)), (2, 3, 5, 4)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 6, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), (4, 6, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, (3, 2), stride=2, padding=1, output_padding=1, dilation=2), (4, 3, 4)),
    "transposed, grouped": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (4, 5)),
    "same padding, even kernel": (lambda: nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 5, 6)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="circular"), (2, 5, 6)),
    "layer norm": (lambda: nn.LayerNorm((4, 5)), (3, 4, 5)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 3, 5)),
    "group norm without positions": (lambda: nn.GroupNorm(2, 4), (4,)),
    "batch norm": (lambda: nn.BatchNorm2d(4), (4, 3, 5)),
    "batch norm without positions": (lambda: nn.BatchNorm1d(4), (4,)),
}  # fmt: skip

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda x: x[:, :1].expand_as(x),
    "offset": lambda x: torch.cat([x[:1], x])[1:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_rows_by_rule_equal_a_loop_over_samples(name: str, layout: str) -> None:
    factory, shape = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layer = oracle.randomize(factory()).double().eval()
        x = LAYOUTS[layout](torch.randn(6, *shape, dtype=torch.float64))
        y = torch.randn_like(layer(x))
    J = hesse.parameter_jacobian(layer, nn.MSELoss(reduction="sum"), (x, y))
    assert set(J.paths.values()) == {"rule"}
    rows = oracle.loss_rows(layer, lambda out, target: ((out - target) ** 2).sum(), x, y)
    assert oracle.difference(J.dense(), rows) < 1e-12
    assert oracle.difference(J.norms(), rows.norm(dim=1)) < 1e-12
    assert oracle.difference(J.gram(), rows @ rows.mT) < 1e-12
    assert oracle.difference(J.in_space.ravel(J.sum_of_squares()), rows.square().sum(0)) < 1e-12


@pytest.mark.parametrize("padding_idx", [None, 0, -1])
def test_embedding_by_rule(padding_idx: int | None) -> None:
    layer = nn.Embedding(5, 3, padding_idx=padding_idx).double()
    tokens = torch.tensor([[0, 1, 1, 4], [2, 2, 2, 2], [4, 3, 0, 0]])
    J = hesse.parameter_jacobian(layer, lambda out, target: out.sin().sum(), (tokens, tokens))
    rows = oracle.loss_rows(layer, lambda out, target: out.sin().sum(), tokens, tokens)
    assert J.paths == {"weight": "rule"}
    assert oracle.difference(J.dense(), rows) < 1e-12
    assert oracle.difference(J.norms(), rows.norm(dim=1)) < 1e-12
    assert oracle.difference(J.in_space.ravel(J.sum_of_squares()), rows.square().sum(0)) < 1e-12


@pytest.mark.parametrize(("padding", "stride", "dilation"), [((0, 0), (1, 1), (1, 1)), ((2, 1), (2, 1), (1, 3))])
def test_patches_are_those_of_unfold(padding: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> None:
    images, kernel = torch.arange(2 * 3 * 4 * 7 * 8.0).reshape(2, 3, 4, 7, 8), (3, 2)
    expected = F.unfold(images.flatten(0, 1), kernel, dilation=dilation, padding=padding, stride=stride)
    positions = [
        (7 + 2 * padding[0] - dilation[0] * 2 - 1) // stride[0] + 1,
        (8 + 2 * padding[1] - dilation[1] - 1) // stride[1] + 1,
    ]
    for groups in (1, 2):
        patches = Patches(images, kernel, stride, padding, dilation, positions, groups)
        whole = expected.reshape(2, 3, groups, -1, expected.shape[2]).mT.transpose(1, 2).flatten(2, 3)
        assert patches.shape == whole.shape
        assert torch.equal(patches[:], whole) and torch.equal(patches[1:], whole[1:])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sample_axis_takes_rows_out_and_puts_them_back(axis: int) -> None:
    where, shape = SampleAxis(axis, before=2, after=3), [4, 5, 7]
    shape[axis] = 2 * 6 * 3
    tensor = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    rows = where.rows(tensor)
    for sample in range(6):
        places = [b * 18 + sample * 3 + a for b in range(2) for a in range(3)]
        assert torch.equal(rows[sample], tensor.index_select(axis, torch.tensor(places)))
    assert torch.equal(where.unrows(rows), tensor)
