"""Collective operations that end within a time: what they send is counted, and a group that broke stays broken."""

from __future__ import annotations

import math
import numbers
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hesse.core.errors import DistributedError, StructureError
from hesse.distributed.silence import silent_ranks
from hesse.distributed.standing import AGAIN, group_and_standing, lost
from hesse.distributed.traffic import count

LEAST_SECONDS, MOST_SECONDS = 1e-3, 1e9
_RESTART = "look at the output of that process; start all of them again; a larger timeout= waits longer for slow ones"


class Wire:
    """The operations of one group.

    Args:
        group: as of `torch.distributed`; None: the default group, or this process alone where nothing was started.
        timeout: seconds to wait for the others at each operation.

    Attributes:
        standing: where the group stands.

    Raises:
        As `group_and_standing`.
    """

    def __init__(self, group: dist.ProcessGroup | None, timeout: float) -> None:
        found, self.standing = group_and_standing(group)
        self._group = None if found is None else weakref.ref(found)  # what outlives destroy_process_group may abort the exit
        self.timeout = timeout

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group; None where this process is alone, or the group is no more."""
        return None if self._group is None else self._group()

    def require(self, what: str) -> None:
        """Refuse a group with which nothing can be asked any more.

        Raises:
            DistributedError: a process was lost before, or the group was destroyed.
        """
        found = lost(self.group, alone=self._group is None)
        if found:
            raise DistributedError(f"{what}: over {self.standing.ranks} processes.", found, AGAIN)
        if self.standing.broken:
            raise DistributedError(f"{what}: over {self.standing.ranks} processes.", self.standing.broken, _RESTART)

    def sum(self, buffer: Tensor, name: str) -> Tensor:
        """The sum over all processes, in place.

        Raises:
            DistributedError: a process is silent or gone.
        """
        self._wait(lambda: dist.all_reduce(buffer, group=self.group, async_op=True), name)
        count(name, 2 * (self.standing.ranks - 1) / self.standing.ranks * buffer.nbytes)
        return buffer

    def gather(self, raw: bytes, sizes: Sequence[int], name: str) -> list[bytes]:
        """The bytes of every process.

        Args:
            raw: those of this process.
            sizes: how many each process has.
            name: what is asked.

        Raises:
            DistributedError: a process is silent or gone.
        """
        ranks, longest = self.standing.ranks, max(sizes)
        if ranks == 1:
            return [raw]
        mine = torch.zeros(longest, dtype=torch.uint8)
        mine[: len(raw)] = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        mine = mine.to(self.home)
        parts = [torch.empty_like(mine) for _ in range(ranks)]
        self._wait(lambda: dist.all_gather(parts, mine, group=self.group, async_op=True), name)
        count(name, (ranks - 1) * longest)
        return [part.cpu().numpy().tobytes()[:size] for part, size in zip(parts, sizes, strict=True)]

    def gather_rows(self, mine: Tensor, name: str) -> Tensor:
        """Equally many rows of every process, in the order of the ranks; of any dtype, not counted as traffic.

        Args:
            mine: ``[rows, ...]`` of this process, contiguous.
            name: what is asked.

        Returns:
            ``[ranks * rows, ...]`` on the same device.

        Raises:
            DistributedError: a process is silent or gone.
        """
        there = mine if self.takes(mine.device.type) else mine.to(self.home)
        rows = there.new_empty((self.standing.ranks * len(mine), *mine.shape[1:]))
        if rows.numel():
            sent, got = (part.view(-1).view(torch.uint8) for part in (there, rows))
            self._wait(lambda: dist.all_gather_single(got, sent, group=self.group, async_op=True), name)
        return rows.to(mine.device)

    @property
    def home(self) -> torch.device:
        """Where the group's headers live."""
        return torch.device("cpu" if self.takes("cpu") else f"cuda:{torch.cuda.current_device()}")

    def takes(self, kind: str) -> bool:
        """Whether the group sums tensors on devices of this type (NCCL: on GPUs only)."""
        return f"{kind}:" in str(dist.get_backend_config(self.group))

    def _wait(self, start: Callable[[], Any], what: str) -> None:
        """Start an operation and wait until it has ended, or raise `DistributedError`."""
        with self.breaking(what):
            start().wait(timedelta(seconds=self.timeout))

    @contextmanager
    def breaking(self, what: str) -> Iterator[None]:
        """Around operations of PyTorch: where they fail, the group is broken from here on.

        Raises:
            DistributedError: instead of what PyTorch raises.
        """
        standing = self.standing
        try:
            yield
        except DistributedError as error:  # of another group, which the same operations go over
            standing.broken = error.found
            raise
        except RuntimeError as error:
            silent = silent_ranks(f"{standing.name}/{standing.exchanges}", standing.rank, self.group)
            names = f"no sign of life of rank {', '.join(map(str, silent))}" if silent else "every process is there"
            standing.broken = f"{names}; {_reason(error)}"
            raise DistributedError(
                f"{what}: over {standing.ranks} processes, within {self.timeout:g} seconds.", standing.broken, _RESTART
            ) from error
        except BaseException as error:
            standing.broken = f"an exchange on this process was interrupted ({type(error).__name__})"
            raise


def checked_timeout(timeout: Any) -> float:
    """Seconds to wait for other processes.

    Raises:
        StructureError: no number of seconds from 0.001 to 10^9.
    """
    seconds = float(timeout) if isinstance(timeout, numbers.Real) and not isinstance(timeout, bool) else math.nan
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        asked = f"timeout= is a number of seconds, from {LEAST_SECONDS:g} to {MOST_SECONDS:g}."
        raise StructureError(asked, repr(timeout)[:100], "pass timeout=300")
    return seconds


def _reason(error: RuntimeError) -> str:
    """What PyTorch says, in a few words; the whole of it is the error's cause."""
    text = str(error).lower()
    if "timed out" in text or "timeout" in text:
        return "the time is over"
    if "connection" in text or "socket" in text:
        return "a connection was closed"
    return f"the operation failed ({type(error).__name__})"
