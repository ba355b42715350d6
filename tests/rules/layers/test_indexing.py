"""Elements of a weight picked by indices that are data."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.rules.layers import Meeting, SampleAxis, layer_rules
from tests.parameters.special import Free
from tests.rules.layers.comparing import compare, seeded, tokens, weight

BY_RULE: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "one axis": (lambda s, i: s.w[i], (4,)),
    "rows": (lambda s, i: s.w[i], (4, 3)),
    "slices": (lambda s, i: s.w[i, :], (4, 3, 2)),
    "negative": (lambda s, i: s.w[i - 4], (4, 3)),
    "one place a sample": (lambda s, i: s.w[i[:, 0]], (4, 3)),
    "positions first": (lambda s, i: s.w[i.mT].mean(0), (4, 3)),
    "merged": (lambda s, i: s.w[i.flatten()].reshape(*i.shape, 3).sum(1), (4, 3)),
    "select": (lambda s, i: s.w.index_select(0, i[:, 0]), (4, 3)),
    "select from one axis": (lambda s, i: s.w.index_select(0, i.flatten()).reshape(i.shape), (4,)),
    "gather": (lambda s, i: s.w.gather(0, i.flatten()).reshape(i.shape), (4,)),
    "take": (lambda s, i: s.w.take(i - 4), (4,)),
    "twice": (lambda s, i: s.w[i[:, :2]].sum(1) * s.w[i[:, 2:]].tanh().sum(1), (4, 3)),
}
MASKED: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "columns": (lambda s, i: s.w[:, i].transpose(0, 1), (3, 4)),
    "two indices": (lambda s, i: s.w[i, i.flip(1)], (4, 4)),
    "select of columns": (lambda s, i: s.w.index_select(1, i[:, 0]).mT, (3, 4)),
    "gather along rows": (lambda s, i: s.w.gather(0, i), (4, 5)),
    "take of a matrix": (lambda s, i: s.w.take(i), (4, 3)),
}


@pytest.mark.parametrize("name", BY_RULE)
def test_indices_of_the_first_axis(name: str) -> None:
    call, shape = BY_RULE[name]
    compare(Free(call, w=weight(*shape)), tokens(6, 5, below=4))


@pytest.mark.parametrize("name", MASKED)
def test_other_indices_take_the_exact_path(name: str) -> None:
    call, shape = MASKED[name]
    compare(Free(call, w=weight(*shape)), tokens(6, 5, below=4), paths=frozenset({"masked"}))


def test_indices_computed_from_data() -> None:
    compare(Free(lambda s, x: s.w[(x > 0).long()] * x.unsqueeze(2), w=weight(2, 3)), seeded(6, 4))


def test_boolean_indices_have_no_rule() -> None:
    w = weight(4, 3)
    for index in (torch.tensor([True, False, True, True]), torch.tensor([0, 1, 1, 1], dtype=torch.uint8)):
        y = w[index.bool()]
        node = SimpleNamespace(_saved_indices=(index,))
        meeting = Meeting(node, 0, {0: torch.ones_like(y)}, {0: SampleAxis(0, 1, 1)}, w.shape)
        assert layer_rules.lookup("IndexBackward0")(meeting) is None
