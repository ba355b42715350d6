"""Gram matrices by blocks over the processes of a group: every process reads all data and computes some of the blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hesse.core import pages
from hesse.core.errors import DataError, MemoryBudgetError, StructureError
from hesse.core.memory import current_budget, format_bytes
from hesse.core.space import require_full
from hesse.distributed.gram_shares import agreed_shares, require_rows
from hesse.distributed.link import Link
from hesse.parameters.base import JacobianBySample
from hesse.parameters.gram_blocks import Block, place, require_target

_ROUND = 2**24  # bytes of blocks that a process sends at once
_TIMEOUT = 1800.0


def gram(
    jacobian: JacobianBySample,
    other: JacobianBySample | None = None,
    *,
    out: Any = None,
    to: int | None = None,
    group: dist.ProcessGroup | None = None,
    timeout: float = _TIMEOUT,
) -> Any:
    """The Gram matrix of a Jacobian's rows, its blocks computed by all processes of a group.

    All processes call this together, with Jacobians of the same model on the same data in the same order (each reads all of
    them; `gather_batches` collects shards), which is checked.

    Args:
        jacobian: of one batch or a data set, as of `hesse.parameter_jacobian`.
        other: that of other data of the same model; by default `jacobian` itself, of whose matrix only half is computed.
        out: a tensor or a NumPy array (memory-mapped, too) of the result's shape to write to.
        to: the rank in the group that gets the result; by default all do.
        group: of `torch.distributed`; by default all processes. Where nothing was started, this process alone.
        timeout: seconds to wait for the others after every round of blocks; more than one of them may be behind.

    Returns:
        ``[N, M]``, for outputs ``[N, C, M, C]``, or `out`; None on processes that do not get it.

    Raises:
        DistributedError: other data, parameters or loss on another process; one failed, is gone, or asks something else.
        MemoryBudgetError: no room for the result. StructureError: `out` has another shape, `to` is no rank of the group.

    Cost: of p processes, each contracts 1 / p of the pairs of samples, and captures the samples of its own blocks, at most all
    of them if they fit into memory. Each receives (p - 1) / p of the blocks, 16 MiB at a time from each of the others.
    """
    link = Link(group, timeout)
    with link.asking("gram"):
        return _gram(link, jacobian, jacobian if other is None else other, out, to)


def _gram(link: Link, jacobian: JacobianBySample, second: JacobianBySample, out: Any, to: int | None) -> Any:
    """As `gram`, over a link."""
    require_rows("gram", jacobian, second)
    shares = agreed_shares(link, jacobian, second)
    gets = to is None or to == link.rank
    wanted = out if gets else None
    link.exchange(f"gram(to={to!r})"[:100], lambda: _require_target(jacobian, second, wanted, to, link.ranks, gets))
    target = _target(jacobian, second, out) if gets else None
    axis = len(jacobian.out_space.shapes[0])
    elements = [max(shape[1:].numel(), 1) for shape in (jacobian.out_space.shapes[0], second.out_space.shapes[0])]
    each = elements[0] * elements[1] * jacobian.out_space.dtype.itemsize
    other = None if second is jacobian else second
    blocks = jacobian.gram_blocks(other, plan=shares.plan, tasks=shares.tasks[link.rank])
    most = max(((t.rows.stop - t.rows.start) * (t.columns.stop - t.columns.start) * each for t in shares.plan.tasks), default=1)
    at_once = max(_ROUND // most, 1)
    for _ in range(-(-max(len(tasks) for tasks in shares.tasks) // at_once)):
        rounds = link.exchange("blocks of a Gram matrix", lambda: [_sent(block) for block in itertools.islice(blocks, at_once)])
        if target is not None:
            for block in itertools.chain(*rounds):
                place(target, block, axis, both=second is jacobian)
    next(blocks, None)  # ends the generator
    return (target if out is None else out) if gets else None


def gram_blocks(
    jacobian: JacobianBySample,
    other: JacobianBySample | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    timeout: float = _TIMEOUT,
) -> Iterator[Block]:
    """This process's blocks of a Gram matrix, of which every process computes its own; nothing of them is sent.

    Args:
        jacobian, other, group, timeout: as for `gram`.

    Returns:
        `Block` s as of ``jacobian.gram_blocks``; those of all processes together are the matrix (of a symmetric one the lower
        triangle), each once.

    Raises:
        As `gram`, before the first block.
    """
    link = Link(group, timeout)
    with link.asking("gram_blocks"):
        second = jacobian if other is None else other
        require_rows("gram_blocks", jacobian, second)
        shares = agreed_shares(link, jacobian, second)
    return jacobian.gram_blocks(other, plan=shares.plan, tasks=shares.tasks[link.rank])


def gather_batches(
    batches: Iterable[Any], *, group: dist.ProcessGroup | None = None, timeout: float = _TIMEOUT
) -> list[Any]:
    """The batches of all processes, in the order of their ranks, on every process.

    Args:
        batches: this process's; it may have none.
        group: of `torch.distributed`; by default all processes.
        timeout: seconds to wait for the others at every batch.

    Raises:
        DataError: no process has a batch. DistributedError: reading a batch failed on another process.

    Cost: each of p processes receives the batches of the others, one at a time, and holds all of them.
    """
    link = Link(group, timeout)
    with link.asking("gather_batches"):
        return _gathered(link, batches)


def _gathered(link: Link, batches: Iterable[Any]) -> list[Any]:
    """As `gather_batches`, over a link."""
    if isinstance(batches, Tensor) or not hasattr(batches, "__iter__"):
        asked, kind = "gather_batches(batches) takes an iterable of batches.", type(batches).__name__
        raise DataError(asked, f"a {kind}", "pass a list or a DataLoader")
    rest = iter(batches)

    def read() -> tuple[bool, Any]:
        for batch in rest:
            return True, batch
        return False, None

    found: list[list[Any]] = [[] for _ in range(link.ranks)]
    while True:
        sent = link.exchange("batches of all processes", read)
        for rank, (is_there, batch) in enumerate(sent):
            if is_there:
                found[rank].append(batch)
        if not any(is_there for is_there, _ in sent):
            break
    everything = list(itertools.chain(*found))
    if not everything:
        raise DataError("gather_batches(batches) needs data.", "no batch on any process", "pass at least one batch")
    return everything


def _sent(block: Block) -> Block:
    return Block(block.rows, block.columns, block.values.detach().cpu())


def _require_target(
    first: JacobianBySample, second: JacobianBySample, out: Any, to: int | None, ranks: int, gets: bool
) -> None:
    """Refuse what `gram` cannot write to."""
    if to is not None and not (type(to) is int and 0 <= to < ranks):
        found = f"to={to!r} of {ranks} processes"
        raise StructureError("gram(to=) takes a rank of the group.", found, "pass 0, or leave to= away")
    shape = (*first.out_space.shapes[0], *second.out_space.shapes[0])
    if out is not None:
        require_full(out, "gram(out=)")
        require_target(out, shape)
    needed = first.shape[0] * second.shape[0] * first.out_space.dtype.itemsize
    allowed = current_budget(first.memory, first.out_space.device)
    if gets and out is None and needed > allowed:
        raise MemoryBudgetError(
            "The memory budget is too small for a Gram matrix on every process.",
            f"a budget of {format_bytes(allowed)}, where {format_bytes(needed)} are needed",
            "pass out= a memory-mapped array, to=0, or use gram_blocks",
            needed,
        )


def _target(first: JacobianBySample, second: JacobianBySample, out: Any) -> Tensor:
    if out is None:
        shape = (*first.out_space.shapes[0], *second.out_space.shapes[0])
        return pages.empty(shape, first.out_space.dtype, first.out_space.device)
    return torch.from_numpy(out) if isinstance(out, np.ndarray) else out
