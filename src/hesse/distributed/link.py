"""The one door to `torch.distributed`: sums over processes that know who failed, who is gone, and who asked something else.

Every exchange begins with an all-reduce of one fixed size, whatever is asked: a header with a slot a rank (the sum of a number
and zeros is the number), and room for a small payload. So processes that ask different things find out from the header; were
the sizes to differ, gloo would end the process, and NCCL hang. A larger payload follows in an all-reduce of its own, until it
has come twice in a row (see `hesse.distributed.repeats`).

Exchanges belong to questions, which all processes count alike. What one process refuses on its own, before or between the
exchanges of a question, it tells the others at their next exchange (`Link.asking`), so that all go on with the next question.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.distributed.buffers import Layout, pack, unpack
from hesse.distributed.differences import Earlier, Told, brief, explained, hash_text
from hesse.distributed.repeats import Repeat, all_alike, may_repeat, tail
from hesse.distributed.wire import Wire, checked_timeout

Result = TypeVar("Result")
P = ParamSpec("P")
ROOM = 1024  # numbers that travel with the header
_SLOT = 4  # numbers a rank: whether it failed, what it asks, what it was given, its mass


def header_bytes(ranks: int) -> int:
    """Bytes of the buffer that exchanges begin with."""
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


def _by_one_thread(ask: Callable[Concatenate[Link, str, P], Result]) -> Callable[Concatenate[Link, str, P], Result]:
    """An exchange that is refused while another thread's question is open."""

    @wraps(ask)
    def asked(link: Link, what: str, *args: P.args, **options: P.kwargs) -> Result:
        with link._standing.held(what):
            return ask(link, what, *args, **options)

    return asked


class Link:
    """A group of processes that ask the same things in the same order.

    Args:
        group: of `torch.distributed`; None: the default group, or this process alone where nothing was started.
        timeout: seconds to wait for the others at each exchange.
        counted: whether its place among all links tells its questions from those of others, as data do that are spread. Then
            every process makes it.

    Attributes:
        rank, ranks: this process's place, and how many there are.

    Raises:
        DistributedError: `torchrun` started several processes, and they have no group yet; or this one is not in the group.
        StructureError: no group, or no number of seconds from 0.001 to 10^9; told to the others at the next question (where
        `group` is no group: to those of the default group).
    """

    def __init__(self, group: dist.ProcessGroup | None = None, timeout: float = 300.0, *, counted: bool = True) -> None:
        try:
            self._join(group, counted)
        except StructureError as error:
            with suppress(Exception):
                self._join(None, counted)
                self._note(error)
            raise
        with self.noting():
            self._wire.timeout = checked_timeout(timeout)

    def _join(self, group: dist.ProcessGroup | None, counted: bool) -> None:
        self._wire = Wire(group, 300.0)
        self._standing = self._wire.standing
        self.rank, self.ranks = self._standing.rank, self._standing.ranks
        self._standing.links += counted
        self._place, self._operator = self._standing.links if counted else 0, ""

    @property
    def timeout(self) -> float:
        """Seconds to wait for the others at each exchange."""
        return self._wire.timeout

    def of_operator(self) -> Link:
        """The link for the operator that all processes have just made: its questions are not those of another operator.

        Operators are told apart by the question at which they were made, which all processes count alike, and at which they
        have compared what it is made of.
        """
        own, standing = copy.copy(self), self._standing
        standing.made += 1
        own._operator = f", operator of question {standing.questions}.{standing.made}"
        return own

    @property
    def _by(self) -> str:
        """Which data are asked, and which operator of them."""
        return f"{self._standing.name}-{self._place}{self._operator}"

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """A question of several steps: what a process raises between its exchanges is raised on the others, too.

        The others learn of it at their next exchange, as `DistributedError`. Where the question has no more of them, they have
        its result, and the next one waits for the process that failed.

        Args:
            what: how errors name the question.
        """
        standing = self._standing
        with standing.held(what):
            standing.fresh = standing.fresh or not standing.depth
            standing.depth += 1
            try:
                yield
            except BaseException as error:
                if standing.depth == 1 and isinstance(error, Exception):
                    self._tell(what, error)
                elif standing.depth == 1 and standing.fresh and standing.owed is None and self.ranks > 1:
                    standing.owed = Earlier(f"{type(error).__name__} in {what}")  # interrupted: the others wait in it
                raise
            finally:
                standing.depth -= 1
                if not standing.depth:
                    standing.told, standing.fresh = None, False

    @contextmanager
    def noting(self) -> Iterator[None]:
        """A step of which the others hear nothing, unless it fails: then at the next exchange, before what is asked there."""
        try:
            yield
        except Exception as error:
            self._note(error)
            raise

    def _note(self, error: Exception) -> None:
        standing = self._standing
        if self.ranks > 1 and not standing.depth and standing.owed is None:
            standing.owed = Earlier(brief(error))

    @_by_one_thread
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

        asked = f"{what} {layout}"
        part, error = self._tried(asked, packed)
        if self.ranks == 1 and error is None:
            return unpack(layout, buffers), part.mass
        repeat = self._repeated(asked, part, error, buffers)
        if repeat is not None:
            return unpack(layout, buffers), repeat.total
        small = sum(b.numel() for b in buffers) <= ROOM
        masses, room = self._header(asked, part, error, buffers if small else [])
        if small:
            start = 0
            for buffer in buffers:
                buffer.copy_(room[start : start + buffer.numel()])
                start += buffer.numel()
            self._standing.ended(None)
        else:
            for buffer in buffers:
                there = self._placed(buffer)
                summed = self._wire.sum(there, asked)
                if summed is not buffer:
                    buffer.copy_(summed)
            self._standing.ended(self._expectation(asked, part, sum(masses), buffers))
        return unpack(layout, buffers), sum(masses)

    @_by_one_thread
    def exchange(self, what: str, work: Callable[[], Result]) -> list[Result]:
        """An object of every process, by rank; it is pickled.

        Raises:
            DistributedError: as for `total`.
        """
        results: list[bytes] = []

        def pickled() -> Part:
            results.append(pickle.dumps(work()))
            return Part(mass=len(results[0]))

        part, error = self._tried(what, pickled)
        sizes, _ = self._begun(what, part, error)
        return [pickle.loads(raw) for raw in self._wire.gather(results[0], [int(size) for size in sizes], what)]

    @_by_one_thread
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

        part, error = self._tried(what, work)
        self._begun(what, part, error)

    def _tell(self, what: str, error: Exception) -> None:
        """Send the others an error that they do not know of; nothing where they cannot be reached."""
        standing = self._standing
        if self.ranks > 1 and not (standing.working or standing.broken or standing.knows(error)):
            with suppress(Exception):
                self._begin(what)
                self._begun(what, Part(), error)

    def _tried(self, what: str, work: Callable[[], Part]) -> tuple[Part, Exception | None]:
        """This process's part of an exchange that begins here, or why there is none."""
        self._begin(what)
        before, self._standing.working = self._standing.working, True
        try:
            return work(), None
        except Exception as error:
            return Part(), error
        finally:
            self._standing.working = before

    def _begin(self, what: str) -> None:
        try:
            self._wire.require(what)
        except Exception as error:
            self._standing.note_told(error)
            raise
        owed, self._standing.owed = self._standing.owed, None
        if owed is not None:
            fresh = self._standing.fresh
            self._standing.begin_exchange()
            with suppress(Exception):
                self._begun("what was asked before", Part(), owed)
            self._standing.fresh = fresh
            self._wire.require(what)
        self._standing.begin_exchange()

    def _begun(self, what: str, part: Part, error: Exception | None) -> tuple[list[float], Tensor]:
        """An exchange without a payload to sum."""
        if self.ranks > 1:
            self._repeated(what, part, error, [])
        found = self._header(what, part, error, [])
        self._standing.ended(None)
        return found

    def _repeated(self, asked: str, part: Part, error: Exception | None, buffers: list[Tensor]) -> Repeat | None:
        """Send what is expected, if anything is; None where not all did, else the buffer holds the sum."""
        repeat = self._standing.repeat
        if repeat is None:
            return None
        self._standing.ended(None)
        mine = error is None and repeat.asked == f"{self._by} {asked}" and repeat.mass == part.mass
        mine = mine and [buffer.numel() for buffer in buffers] == [repeat.numbers]
        like = torch.zeros(0, dtype=repeat.dtype, device=repeat.device)
        payload = buffers[0].to(like) if mine else like.new_zeros(repeat.numbers)
        behind = tail(self.ranks, hash_text(f"{repeat.asked} {self._standing.questions} {part.given}") if mine else None, like)
        summed = self._wire.sum(torch.cat([payload, behind]), asked)
        if not all_alike(self.ranks, summed[repeat.numbers :]):
            return None
        buffers[0].copy_(summed[: repeat.numbers])
        self._standing.repeat = repeat
        return repeat

    def _expectation(self, asked: str, part: Part, total: float, buffers: list[Tensor]) -> Repeat | None:
        """What went over the wire just now, if it is worth to be expected again."""
        if not may_repeat(self.ranks, buffers):
            return None
        buffer = buffers[0]
        device = buffer.device if self._wire.takes(buffer.device.type) else self._wire.home
        return Repeat(f"{self._by} {asked}", buffer.numel(), buffer.dtype, device, part.mass, total)

    def _placed(self, buffer: Tensor) -> Tensor:
        return buffer if self._wire.takes(buffer.device.type) else buffer.to(self._wire.home)

    def _header(self, what: str, part: Part, error: Exception | None, small: list[Tensor]) -> tuple[list[float], Tensor]:
        """The masses by rank, and the sum of the small payload ``[ROOM]``, once all processes are known to be well."""
        if self.ranks == 1:
            if error is not None:
                raise error
            return [part.mass], torch.zeros(0)
        tag = hash_text(f"{self._by} {self._standing.questions} {what}")
        mine = torch.zeros(self.ranks * _SLOT + ROOM, dtype=torch.float64)
        mine[self.rank * _SLOT :][:_SLOT] = torch.tensor([error is not None, tag, part.given, part.mass], dtype=torch.float64)
        if small:
            flat = torch.cat([buffer.to(mine) for buffer in small])
            mine[self.ranks * _SLOT :][: len(flat)] = flat
        while True:
            sent = self._wire.sum(mine.to(self._wire.home, copy=True), what).cpu()
            slots = sent[: self.ranks * _SLOT].reshape(self.ranks, _SLOT)
            if not slots[:, 0].any() and all(len(set(slots[:, i].tolist())) == 1 for i in (1, 2)):
                return slots[:, 3].tolist(), sent[self.ranks * _SLOT :]
            self._explain(what, part, error)

    def _explain(self, what: str, part: Part, error: Exception | None) -> None:
        """Tell each other what went wrong, and raise it; where only others are at an earlier question, it is theirs.

        Where the processes refuse each other's questions, they count links alike from here on: data spread anew are in step.
        """
        standing = self._standing
        standing.ended(None)
        text = "" if error is None else brief(error)
        by = f"call {self._place} of {standing.links} of spread, deal and the like{self._operator}"
        raw = pickle.dumps(Told(what, standing.questions, text, part.given, part.details, by, standing.links))
        sizes = torch.zeros(self.ranks, dtype=torch.int64)
        sizes[self.rank] = len(raw)
        sizes = self._wire.sum(sizes.to(self._wire.home), _WRONG)
        told: list[Told] = [pickle.loads(one) for one in self._wire.gather(raw, sizes.tolist(), _WRONG)]
        if standing.questions > min(one.question for one in told):
            return
        if not any(one.error for one in told) and len({one.question for one in told}) == 1:
            standing.links = max(one.links for one in told)
        found = error or explained(what, told, self.rank)
        standing.note_told(found)
        raise found


_WRONG = "what went wrong"

