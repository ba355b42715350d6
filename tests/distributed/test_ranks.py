"""The harness itself: values by rank, exceptions, deaths and hangs; processes are kept where nothing broke."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from .ranks import run_ranks, try_ranks


def summed(rank: int, x: torch.Tensor) -> tuple[int, torch.Tensor]:
    total = x * (rank + 1)
    dist.all_reduce(total)
    return os.getpid(), total


def fails_on_one(rank: int) -> int:
    if rank == 1:
        raise ValueError("no data here")
    return rank


def dies_or_hangs(rank: int, way: str) -> int:
    if rank == 0 and way == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0:
        time.sleep(60)
    return rank


def test_values_come_by_rank_and_processes_are_kept() -> None:
    x = torch.tensor([1.0, 2.0])
    first, second = run_ranks(summed, 2, x), run_ranks(summed, 2, x)
    assert [pid for pid, _ in first] == [pid for pid, _ in second]
    assert all(torch.equal(total, 3 * x) for _, total in first)


def test_exceptions_deaths_and_hangs_are_told_apart() -> None:
    with pytest.raises(AssertionError, match=r"rank 1 of 2(?s:.*)no data here"):
        run_ranks(fails_on_one, 2, group_timeout=20)
    dead = try_ranks(dies_or_hangs, 2, "dies", timeout=60, group_timeout=10)
    assert [outcome.kind for outcome in dead] == ["died", "value"]
    hung = try_ranks(dies_or_hangs, 2, "hangs", timeout=20, group_timeout=3)
    assert [outcome.kind for outcome in hung] == ["hung", "value"]
