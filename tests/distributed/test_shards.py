"""Folders that ranks write together against rows from loops of torch.autograd; what a lost rank leaves behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.core import chunk_store_writer
from hesse.core.chunk_store_layout import ArrayLayout
from hesse.core.errors import DataError, DistributedError, StoreError, StructureError
from hesse.distributed.gram_shares import Shares, shares_by_chunk
from hesse.distributed.shards import write_gram, write_rows
from hesse.operators.projections import random_projection
from hesse.parameters.gram_plan import GramPlan
from hesse.parameters.storing.matrix import open_zarr

from .ranks import run_ranks, try_ranks
from .test_gram import ALL, batches_of, model_of, rows_of

SIZES: list[tuple[int, ...]] = [(4, 3), (2, 5, 1), (), (6,)]
RANKS = [2, *([3, 4] if ALL else [])]


def jacobian_of(rank: int) -> Any:
    return hesse.parameter_jacobian(model_of(), F.cross_entropy, batches_of(rank, SIZES[rank])) if SIZES[rank] else None


def data_of(ranks: int) -> list[tuple[Tensor, Tensor]]:
    return [batch for rank in range(ranks) for batch in batches_of(rank, SIZES[rank])]


def rows_written(rank: int, path: str, mode: str) -> Tensor:
    stored = write_rows(jacobian_of(rank), path, mode=mode, chunk_bytes=1000)  # pyright: ignore[reportArgumentType]
    assert stored.mass == sum(len(x) for x, _ in data_of(torch.distributed.get_world_size()))
    return stored[:]


def gram_written(rank: int, path: str, mode: str, chunk_bytes: int) -> Tensor:
    J = hesse.parameter_jacobian(model_of(), F.cross_entropy, data_of(2))
    return write_gram(J, path, mode=mode, chunk_bytes=chunk_bytes)[:]  # pyright: ignore[reportArgumentType]


def cross_written(rank: int, path: str) -> Tensor:
    J, K = (hesse.parameter_jacobian(model_of(), F.cross_entropy, batches_of(seed, (4, 4, 2))) for seed in (0, 1))
    return write_gram(J, path, K)[:]


def lost(rank: int, path: str, kind: str, after: int) -> None:
    """Rank 1 is killed as it has written so many chunks."""
    if rank == 1:
        count = 0
        put = chunk_store_writer.put_chunk

        def counted(*given: Any) -> None:
            nonlocal count
            if count == after:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            put(*given)

        chunk_store_writer.put_chunk = counted
    if kind == "rows":
        write_rows(jacobian_of(rank), path, chunk_bytes=1000, timeout=60)
    else:
        J = hesse.parameter_jacobian(model_of(), F.cross_entropy, data_of(2))
        write_gram(J, path, chunk_bytes=300, timeout=60)


@pytest.mark.parametrize("ranks", RANKS)
def test_rows_of_all_ranks_lie_in_one_folder(tmp_path: Path, ranks: int) -> None:
    path = str(tmp_path / "rows.zarr")
    found = run_ranks(rows_written, ranks, path, "create")
    rows = rows_of(data_of(ranks))
    assert all(torch.equal(found[0], other) for other in found)
    torch.testing.assert_close(found[0], rows)
    stored = open_zarr(path)
    v = torch.randn(rows.shape[1], dtype=torch.float64)
    torch.testing.assert_close(stored.flat @ v, rows @ v)
    again = try_ranks(rows_written, ranks, path, "create")
    assert isinstance(again[0].error, StoreError) and isinstance(again[1].error, DistributedError)
    assert torch.equal(run_ranks(rows_written, ranks, path, "resume")[0], found[0])


@pytest.mark.parametrize("ranks", RANKS)
def test_grams_of_all_ranks_lie_in_one_folder(tmp_path: Path, ranks: int) -> None:
    rows = rows_of(data_of(2))
    for place, chunk_bytes in enumerate((300, 2**20)):
        found = run_ranks(gram_written, ranks, str(tmp_path / f"{place}.zarr"), "create", chunk_bytes)
        assert all(torch.equal(found[0], other) for other in found)
        torch.testing.assert_close(found[0], rows @ rows.T)
    left, right = (rows_of(batches_of(seed, (4, 4, 2))) for seed in (0, 1))
    torch.testing.assert_close(run_ranks(cross_written, ranks, str(tmp_path / "c.zarr"))[0], left @ right.T)


@pytest.mark.parametrize(("kind", "after"), [("rows", 1), *([("rows", 0), ("gram", 2), ("gram", 3)] if ALL else [])])
def test_a_lost_rank_leaves_no_folder_taken_for_whole(tmp_path: Path, kind: str, after: int) -> None:
    whole, path = str(tmp_path / "whole.zarr"), str(tmp_path / "part.zarr")
    first, second = try_ranks(lost, 2, path, kind, after)
    assert second.kind == "died" and isinstance(first.error, DistributedError), first.trace
    with pytest.raises((DataError, StoreError)):
        open_zarr(path)
    if kind == "rows":
        assert torch.equal(run_ranks(rows_written, 2, path, "resume")[0], run_ranks(rows_written, 2, whole, "create")[0])
    else:
        resumed = run_ranks(gram_written, after % 2 + 1, path, "resume", 300)[0]  # on two ranks, or on one
        assert torch.equal(resumed, run_ranks(gram_written, 2, whole, "create", 300)[0])


def refused(rank: int, path: str) -> list[str]:
    found = []
    J = jacobian_of(rank)
    some = hesse.parameter_jacobian(model_of(), F.cross_entropy, batches_of(rank, (2,)), params=["3.bias"])
    other = hesse.parameter_jacobian(model_of(8), F.cross_entropy, batches_of(rank, (2,)))
    summed = hesse.parameter_jacobian(model_of(), nn.CrossEntropyLoss(reduction="sum"), batches_of(rank, (2,)))
    for jacobian in (some if rank else J, other if rank else J, summed if rank else J, None):
        with pytest.raises((DistributedError, StructureError, DataError)) as caught:
            write_rows(jacobian, path)
        found.append(str(caught.value))
    seeded = random_projection(J.in_space, 3, seed=rank)
    with pytest.raises((DistributedError, StructureError)) as caught:
        write_rows(J, path, projection=seeded)
    found.append(str(caught.value))
    return found


def fewer(rank: int, path: str) -> None:
    write_rows(jacobian_of(rank), path, mode="resume", chunk_bytes=1000)


def test_rows_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first, second = run_ranks(refused, 2, str(tmp_path / "none.zarr"))
    for told in (first, second):
        assert "on rank 1 are others than on rank 0" in told[0]
        assert "parameters on rank 1 are others" in told[1]
        assert "loss on rank 1 are others" in told[2]
        assert "no data on any process" in told[3]
        assert "found: settings.projection on rank 1 are others than on rank 0" in told[4]
    assert not (tmp_path / "none.zarr").exists()
    path = str(tmp_path / "two.zarr")
    run_ranks(rows_written, 2, path, "create")
    (alone,) = try_ranks(fewer, 1, path)
    assert isinstance(alone.error, DataError) and "rank 0 of 2" in str(alone.error)
    with pytest.raises(DataError, match=r"passes None to hesse.distributed.write_rows"):
        hesse.parameter_jacobian(model_of(), F.cross_entropy, [])


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4, 2), (3, 1, 5, 2, 6)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_chunk_has_two_writers(sizes: tuple[int, ...], symmetric: bool) -> None:
    total = sum(sizes)
    plan = GramPlan(sizes, None if symmetric else (2, 2, 2, 1), tile=4, held=3)
    layout = ArrayLayout((total, total if symmetric else 7), (3, 2), torch.float64)
    shares = shares_by_chunk(Shares(plan, ((),) * 3), layout)
    assert sorted(map(str, (task for tasks in shares.tasks for task in tasks))) == sorted(map(str, plan.tasks))
    writers: dict[Any, int] = {}
    for rank, tasks in enumerate(shares.tasks):
        for task in tasks:
            for r, c in [(task.rows, task.columns), (task.columns, task.rows)][: 1 + symmetric]:
                for i in range(r.start, r.stop):
                    for j in range(c.start, c.stop):
                        assert writers.setdefault((i // 3, j // 2), rank) == rank
