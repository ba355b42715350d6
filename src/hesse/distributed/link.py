"""The one door to `torch.distributed`: sums over processes that know who failed, who is gone, and who asked something else.

Every exchange begins with an all-reduce of one fixed size, whatever is asked: a header with a slot a rank (the sum of a number
and zeros is the number), and room for a small payload. So processes that ask different things find out from the header; were
the sizes to differ, gloo would end the process, and NCCL hang. A larger payload follows in an all-reduce of its own.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hesse.core.errors import DistributedError, StructureError
from hesse.distributed.buffers import Layout, pack, unpack
from hesse.distributed.differences import Told, explained
from hesse.distributed.silence import silent_ranks
from hesse.distributed.traffic import count

Result = TypeVar("Result")
ROOM = 1024  # numbers that travel with the header
_SLOT = 4  # numbers a rank: whether it failed, what it asks, what it was given, its mass
_BITS = 52  # of a hash: an integer that float64 holds exactly


def header_bytes(ranks: int) -> int:
    """Bytes of the buffer that every exchange begins with."""
    return 8 * (_SLOT * ranks + ROOM)


@dataclass(frozen=True)
class Part:
    """What one process has to add.

    Attributes:
        tensors: of the layout that is summed; None: nothing, which counts as zeros.
        mass: a number that is summed beside them.
        given: a hash of what has to be the same on all ranks (the vector that is multiplied).
        details: named hashes of which `given` is made, for the error.
    """

    tensors: Sequence[Tensor] | None = None
    mass: float = 0.0
    given: int = 0
    details: dict[str, int] | None = None


class Link:
    """A group of processes that ask the same things in the same order.

    Args:
        group: of `torch.distributed`; None: the default group, or this process alone where nothing was started.
        timeout: seconds to wait for the others at each exchange.

    Attributes:
        rank, ranks: this process's place, and how many there are.

    Raises:
        DistributedError: `torchrun` started several processes, and they have no group yet; or this one is not in the group.
        StructureError: the timeout is no positive number.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, timeout: float = 300.0) -> None:
        if not (isinstance(timeout, (int, float)) and timeout > 0):
            raise StructureError("timeout= is a number of seconds.", repr(timeout), "pass timeout=300")
        self.group, self.timeout = group, float(timeout)
        self.rank, self.ranks = _place(group)
        self._count, self._broken = 0, ""
        self._number = _next_number(group)

    def total(self, what: str, layout: Layout, work: Callable[[], Part]) -> tuple[list[Tensor], float]:
        """The sums over all processes of tensors and of their masses; in 32 bits or more, on the device of the layout.

        Args:
            what: what is asked, the same on all processes.
            layout: shapes and dtypes of the tensors, the same on all processes.
            work: makes this process's part; what it raises is raised here, and as `DistributedError` on the others.

        Raises:
            DistributedError: another process failed, is silent or gone, was asked something else or given something else.
        """
        buffers: list[Tensor] = []

        def packed() -> Part:
            part = work()
            buffers.extend(pack(layout, part.tensors))
            return part

        part, error = _tried(packed)
        small = sum(b.numel() for b in buffers) <= ROOM
        asked = f"{what} {layout}"
        masses, room = self._header(asked, part, error, buffers if small else [])
        if self.ranks > 1 and small:
            start = 0
            for buffer in buffers:
                buffer.copy_(room[start : start + buffer.numel()])
                start += buffer.numel()
        elif self.ranks > 1:
            for buffer in buffers:
                if f"{buffer.device.type}:" in self._config():
                    self._sum(buffer, asked)
                else:  # NCCL sums on GPUs only
                    buffer.copy_(self._sum(buffer.to(self._home()), asked))
        return unpack(layout, buffers), sum(masses)

    def exchange(self, what: str, work: Callable[[], Result]) -> list[Result]:
        """An object of every process, by rank; it is pickled.

        Raises:
            DistributedError: as for `total`.
        """
        results: list[bytes] = []

        def pickled() -> Part:
            results.append(pickle.dumps(work()))
            return Part(mass=len(results[0]))

        part, error = _tried(pickled)
        sizes, _ = self._header(what, part, error, [])
        return [pickle.loads(raw) for raw in self._gather(results[0], [int(size) for size in sizes], what)]

    def check_same(self, what: str, hashes: Callable[[], dict[str, int]]) -> None:
        """Refuse what is not the same on all processes.

        Args:
            what: what it is.
            hashes: makes one of each thing, by name.

        Raises:
            DistributedError: they differ: names the first and the ranks. Others as for `total`.
        """

        def work() -> Part:
            found = hashes()
            return Part(given=hash_text(repr(sorted(found.items()))), details=found)

        part, error = _tried(work)
        self._header(what, part, error, [])

    def _header(self, what: str, part: Part, error: Exception | None, small: list[Tensor]) -> tuple[list[float], Tensor]:
        """The masses by rank, and the sum of the small payload ``[ROOM]``, once all processes are known to be well."""
        if self._broken:
            raise DistributedError(f"{what}: over {self.ranks} processes.", self._broken, _RESTART)
        self._count += 1
        if self.ranks == 1:
            if error is not None:
                raise error
            return [part.mass], torch.zeros(0)
        sent = torch.zeros(self.ranks * _SLOT + ROOM, dtype=torch.float64)
        tag = hash_text(f"{self._number} {self._count} {what}")
        sent[self.rank * _SLOT : (self.rank + 1) * _SLOT] = torch.tensor(
            [float(error is not None), tag, part.given, part.mass], dtype=torch.float64
        )
        if small:
            flat = torch.cat([buffer.to(sent) for buffer in small])
            sent[self.ranks * _SLOT :][: len(flat)] = flat
        sent = self._sum(sent.to(self._home()), what).cpu()
        slots = sent[: self.ranks * _SLOT].reshape(self.ranks, _SLOT)
        if bool(slots[:, 0].any()) or any(len(set(slots[:, i].tolist())) > 1 for i in (1, 2)):
            self._explain(what, part, error)
        return slots[:, 3].tolist(), sent[self.ranks * _SLOT :]

    def _explain(self, what: str, part: Part, error: Exception | None) -> NoReturn:
        """Tell each other what went wrong, and raise it."""
        message = "" if error is None else f"{type(error).__name__}: {error}"
        raw = pickle.dumps(Told(what, message, part.given, part.details))
        sizes = torch.zeros(self.ranks, dtype=torch.int64)
        sizes[self.rank] = len(raw)
        sizes = self._sum(sizes.to(self._home()), "what went wrong")
        told = [pickle.loads(one) for one in self._gather(raw, sizes.tolist(), "what went wrong")]
        if error is not None:
            raise error
        raise explained(what, told, self.rank)

    def _gather(self, raw: bytes, sizes: Sequence[int], name: str) -> list[bytes]:
        """The bytes of every process."""
        if self.ranks == 1:
            return [raw]
        longest = max(sizes)
        mine = torch.zeros(longest, dtype=torch.uint8)
        mine[: len(raw)] = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        mine = mine.to(self._home())
        parts = [torch.empty_like(mine) for _ in range(self.ranks)]
        self._wait(lambda: dist.all_gather(parts, mine, group=self.group, async_op=True), name)
        count(name, (self.ranks - 1) * longest)
        return [part.cpu().numpy().tobytes()[:size] for part, size in zip(parts, sizes, strict=True)]

    def _sum(self, buffer: Tensor, name: str) -> Tensor:
        """The sum over all processes, in place."""
        self._wait(lambda: dist.all_reduce(buffer, group=self.group, async_op=True), name)
        count(name, 2 * (self.ranks - 1) / self.ranks * buffer.nbytes)
        return buffer

    def _wait(self, start: Callable[[], Any], what: str) -> None:
        """Start an operation and wait until it has ended, or raise `DistributedError`."""
        try:
            start().wait(timedelta(seconds=self.timeout))
        except RuntimeError as error:
            silent = silent_ranks(f"{self._number}/{self._count}", self.rank, self.group)
            names = f"no sign of life of rank {', '.join(map(str, silent))}" if silent else "every process is there"
            self._broken = f"{names}; {str(error).splitlines()[0][-160:]}"
            raise DistributedError(
                f"{what}: over {self.ranks} processes, within {self.timeout:g} seconds.", self._broken, _RESTART
            ) from error

    def _home(self) -> torch.device:
        """Where the group's headers live."""
        return torch.device("cpu" if "cpu:" in self._config() else f"cuda:{torch.cuda.current_device()}")

    def _config(self) -> str:
        """The backend of every type of device, ``"cpu:gloo,cuda:nccl"``."""
        return str(dist.get_backend_config(self.group))


_RESTART = "look at the output of that process; start all of them again; a larger timeout= waits longer for slow ones"


def hash_text(text: str) -> int:
    """An integer below 2^52."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> (64 - _BITS)


def _tried(work: Callable[[], Part]) -> tuple[Part, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return Part(), error


def _place(group: dist.ProcessGroup | None) -> tuple[int, int]:
    if not (dist.is_available() and dist.is_initialized()):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise DistributedError(
                "Processes that work together need a group.",
                f"{os.environ['WORLD_SIZE']} processes (WORLD_SIZE) and no group",
                "call torch.distributed.init_process_group() first",
            )
        return 0, 1
    rank = dist.get_rank(group)
    if rank < 0:
        raise DistributedError("Data are spread over the processes of a group.", "a process outside it", "leave it out")
    return rank, dist.get_world_size(group)


_numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def _next_number(group: dist.ProcessGroup | None) -> str:
    """A name for a link, which is the same on all processes where they make the same ones in the same order."""
    if not (dist.is_available() and dist.is_initialized()):
        return ""
    key = dist.group.WORLD if group is None else group
    _numbers[key] = _numbers.get(key, 0) + 1
    return f"{hash_text(','.join(map(str, dist.get_process_group_ranks(group))))}-{_numbers[key]}"
