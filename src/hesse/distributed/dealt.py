"""Data that every process can read whole, dealt out: the first batch to the first process, the next to the next."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, SequentialSampler

from hesse.core.errors import DataError
from hesse.core.fingerprint import fingerprint, sample_hashes
from hesse.distributed.link import Link
from hesse.distributed.spread_data import SpreadData, readable


def deal(batches: Iterable[Any], *, group: dist.ProcessGroup | None = None, timeout: float = 300.0) -> Dealt:
    """Deal out batches that every process can read: of p processes, each works on every p-th batch.

    For scripts that load all data on every process. Where each process has data of its own, see `hesse.distributed.spread`.

    Args:
        batches: the same on every process, an iterable that can be read again and again. A `DataLoader` that shuffles is read
            once, and each process keeps its batches in memory; anything else is read in every pass.
        group, timeout: as for `spread`.

    Returns:
        data for `hesse.ggn` and the others, as `spread` gives; `whole` are all batches.

    Raises:
        DistributedError: the batches are not the same on all processes, with the place of the first that differs. Others as
            `spread`.

    Cost: a pass over the data.
    """
    link = Link(group, timeout)
    with link.asking("deal"):
        return _dealt(readable(batches), link)


def _dealt(batches: Iterable[Any], link: Link) -> Dealt:
    kept: list[Any] = []

    def hashes() -> dict[str, int]:
        found: dict[str, int] = {}
        for place, batch in enumerate(batches):
            found[f"batch {place}"] = fingerprint(sample_hashes(batch)) % 2**52
            if not _keeps_order(batches) and place % link.ranks == link.rank:
                kept.append(batch)
        return found

    link.check_same("The data that are dealt out", hashes)
    mine = _EveryNth(batches, link.rank, link.ranks) if _keeps_order(batches) else kept
    return Dealt(batches, mine, link)


class Dealt(SpreadData):
    """Data of which every process can read all, and works on its part; see `deal`.

    Attributes:
        whole: all batches.
    """

    def __init__(self, whole: Iterable[Any], batches: Iterable[Any], link: Link) -> None:
        super().__init__(batches, link)
        self.whole = whole

    def like(self, whole: Iterable[Any]) -> Dealt:
        """The same share of these batches, which were made from `whole` one by one.

        Raises:
            DataError: a loader that shuffles, whose batches cannot be made again.
        """
        if whole is self.whole:
            return self
        if not _keeps_order(self.whole):
            raise DataError(
                "Batches in another dtype or on another device are made in every pass.",
                "a DataLoader that shuffles", "pass shuffle=False, or data that are in the right dtype and place",
            )
        return Dealt(whole, _EveryNth(whole, self.link.rank, self.link.ranks), self.link)


class _EveryNth:
    """Every n-th batch of an iterable, from a first one on."""

    def __init__(self, batches: Iterable[Any], first: int, step: int) -> None:
        self.batches, self.first, self.step = batches, first, step

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.first, None, self.step)


def _keeps_order(batches: Iterable[Any]) -> bool:
    """Whether the batches come in one order in every pass, as far as can be seen."""
    if not isinstance(batches, DataLoader):
        return True
    return isinstance(batches.sampler, SequentialSampler)


def start_processes() -> bool:
    """Make the default group of processes that `torchrun` started: gloo for the CPU, NCCL for GPUs.

    Returns:
        whether a group was made here, which `torch.distributed.destroy_process_group` ends.
    """
    if dist.is_initialized():
        return False
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return True


def take_gpu() -> None:
    """Make the GPU that belongs to this process of `torchrun`'s the current one, if there are any."""
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
