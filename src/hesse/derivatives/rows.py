"""Derivatives of functions that treat rows independently, some rows at a time, where the memory budget asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from hesse.autodiff.recording import inside_functorch
from hesse.core import tree
from hesse.core.chunked import ChunkPlan, in_chunks
from hesse.core.errors import MemoryBudgetError
from hesse.core.memory import Budget, given_budget
from hesse.core.tree import Tree

Result = TypeVar("Result", bound=Tree)

_SMALL = 4096  # times the bytes of x: a budget above is not looked at more closely
_TRIED = 8  # rows, whose second half has to give the same alone


def in_rows(x: Any, question: Callable[[Any], Result], memory: Budget | None, what: str, *, kept: int = 0) -> Result | None:
    """The answer to a question about every row of x, asked of some rows at a time and joined; None: ask it of all at once.

    Args:
        x: a tree of tensors with the rows as their first axis.
        question: from some rows of x to a tree of tensors that begin with these rows.
        memory: the budget; None: that in force. Without one nothing is done.
        what: how an error names it.
        kept: bytes of the whole answer.

    Raises:
        MemoryBudgetError: the answer, or the work on one row, passes the budget.

    Cost: nothing without a budget, or where it is 4096 times as large as x; else the question of a few rows besides.
    """
    leaves = [leaf for leaf in tree.leaves(x) if isinstance(leaf, Tensor)]
    if not leaves or inside_functorch() or any(not leaf.ndim for leaf in leaves) or len({len(leaf) for leaf in leaves}) != 1:
        return None
    count, given = len(leaves[0]), given_budget(memory, leaves[0].device)
    if given is None or given > _SMALL * sum(leaf.nbytes for leaf in leaves) or count < 2 * _TRIED:
        return None

    def ask(part: slice) -> Result:
        return question(tree.map_tree(lambda leaf: leaf[part] if isinstance(leaf, Tensor) else leaf, x))

    if not _is_by_row(ask):
        return None
    plan = ChunkPlan.within(memory, leaves[0].device, what, kept=2 * kept, first=_TRIED)
    parts = [found for _, found in in_chunks(count, ask, plan, what)]
    return tree.map_tree(lambda *pieces: torch.cat(pieces), *parts)


def has_rows(x: Any) -> bool:
    """Whether every leaf of x is a tensor of two or more axes."""
    return all(isinstance(leaf, Tensor) and leaf.ndim > 1 for leaf in tree.leaves(x))


def _is_by_row(ask: Callable[[slice], Tree]) -> bool:
    """Whether rows alone give what they give among others: f may hold tensors of the whole batch, or number its rows."""
    try:
        among, alone = ask(slice(0, _TRIED)), ask(slice(_TRIED // 2, _TRIED))
    except MemoryBudgetError:
        raise
    except Exception:  # of whatever kind: f need not run on fewer rows
        return False
    pairs = zip(tree.leaves(among), tree.leaves(alone), strict=True)
    return all(_agree(a[_TRIED // 2 :], b) for a, b in pairs)


def _agree(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    tolerance = torch.finfo(a.dtype).eps ** 0.5
    return bool((a - b).detach().abs().max() <= tolerance * b.detach().abs().max())
