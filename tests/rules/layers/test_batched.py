"""Batched matrix products and products with vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parameters.special import Free
from tests.rules.layers.comparing import BY_CHAIN, compare, seeded, weight

BY_RULE: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, tuple[int, ...]]]] = {
    "right": (lambda s, x: torch.bmm(x.transpose(0, 1), s.w).transpose(0, 1), {"w": (4, 5, 2)}),
    "right, merged": (lambda s, x: torch.bmm(x.reshape(1, -1, 5).expand(3, -1, 5), s.w).reshape(3, len(x), -1).transpose(0, 1),
                      {"w": (3, 5, 2)}),
    "left": (lambda s, x: torch.bmm(s.w, x.permute(1, 2, 0)).permute(2, 0, 1), {"w": (4, 3, 5)}),
    "left, positions first": (lambda s, x: torch.bmm(s.w, x.permute(2, 1, 0).reshape(1, 5, -1)).reshape(12, -1).mT,
                              {"w": (1, 3, 5)}),
    "with bias": (lambda s, x: torch.baddbmm(s.v, x.transpose(0, 1), s.w, beta=0.5, alpha=2.0).transpose(0, 1),
                  {"v": (4, 1, 2), "w": (4, 5, 2)}),
    "left, with bias": (lambda s, x: torch.baddbmm(s.v, s.w, x.permute(1, 2, 0), beta=0.5, alpha=2.0).permute(2, 0, 1),
                        {"v": (3, 1), "w": (4, 3, 5)}),
    "added up": (lambda s, x: torch.addbmm(s.v, x.transpose(0, 1), s.w, beta=0.5, alpha=2.0), {"v": (2,), "w": (4, 5, 2)}),
    "left, added up": (lambda s, x: torch.addbmm(s.v, s.w, x.permute(1, 2, 0), beta=0.5, alpha=2.0).mT,
                       {"v": (3, 1), "w": (4, 3, 5)}),
    "vector": (lambda s, x: x[:, 0] @ s.w, {"w": (5,)}),
    "vector on positions": (lambda s, x: x @ s.w, {"w": (5,)}),
    "vector, positions first": (lambda s, x: (x.transpose(0, 1) @ s.w).mT, {"w": (5,)}),
    "vector with bias": (lambda s, x: torch.addmv(s.v, x[:, 0], s.w, beta=0.5, alpha=2.0), {"v": (1,), "w": (5,)}),
    "vector with a number": (lambda s, x: torch.addmv(s.v, x[:, 0], s.w), {"v": (), "w": (5,)}),
    "twice": (lambda s, x: torch.bmm(torch.bmm(x.transpose(0, 1), s.w).tanh(), s.w).transpose(0, 1), {"w": (4, 5, 5)}),
}  # fmt: skip

EINSUMS: dict[str, tuple[str, tuple[int, ...]]] = {
    "one layer a group": ("ngk,gkp->ngp", (4, 5, 2)),
    "one layer a group, transposed": ("ngk,gpk->npg", (4, 2, 5)),
    "shared": ("ngk,kp->ngp", (5, 2)),
    "over all": ("ngk,gkp->np", (4, 5, 2)),
    "outer": ("ngk,p->npgk", (3,)),
    "diagonal": ("ngk,gk->ngk", (4, 5)),
    "vector": ("ngk,k->ng", (5,)),
    "all away": ("ngk,gk->n", (4, 5)),
}


@pytest.mark.parametrize("name", BY_RULE)
def test_batched_products(name: str) -> None:
    call, shapes = BY_RULE[name]
    parts = {part: weight(*shape, seed=i) for i, (part, shape) in enumerate(shapes.items())}
    compare(Free(lambda s, x: call(s, x).reshape(len(x), -1), **parts), seeded(6, 4, 5))


@pytest.mark.parametrize("name", EINSUMS)
def test_einsum(name: str) -> None:
    equation, shape = EINSUMS[name]
    model = Free(lambda s, x: torch.einsum(equation, x, s.w).reshape(len(x), -1), w=weight(*shape))
    compare(model, seeded(6, 4, 5), paths=BY_CHAIN)


def test_a_weight_expanded_by_matmul() -> None:
    compare(Free(lambda s, x: torch.matmul(x, s.w), w=weight(4, 5, 2)), seeded(6, 4, 3, 5))


def test_sparse_data_take_the_exact_path() -> None:
    model = Free(lambda s, x: torch.mv(x.to_sparse(), s.w).unsqueeze(1), w=weight(5))
    compare(model, seeded(6, 5), paths=frozenset({"masked"}))
