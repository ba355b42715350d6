"""Where a group of processes stands: which question it is at, whether it can go on, what is expected next."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from hesse.core.errors import DistributedError, StructureError
from hesse.distributed.differences import Earlier, hash_text
from hesse.distributed.repeats import Repeat


@dataclass(eq=False)
class Standing:
    """What all links of one process group have in common; the numbers are the same on all processes that are in step.

    Attributes:
        rank, ranks: this process's place, and how many there are.
        name: of the group, the same on all processes.
        questions: asked so far.
        made: operators made in the latest question.
        exchanges: begun so far.
        depth: how many questions are open here, one inside the other.
        fresh: whether the open question has had no exchange yet.
        working: whether this process is at its own part of an exchange.
        told: the error that the others know of, while a question is open.
        owed: an error that the others have to be told of at the next exchange.
        broken: why no exchange is possible any more, or "".
        links: made so far.
        repeat: what the next exchange is expected to be.
    """

    rank: int = 0
    ranks: int = 1
    name: str = ""
    questions: int = 0
    made: int = 0
    exchanges: int = 0
    depth: int = 0
    fresh: bool = False
    working: bool = False
    told: BaseException | None = None
    owed: Earlier | None = None
    broken: str = ""
    links: int = 0
    repeat: Repeat | None = None
    _last: str = ""
    _thread: int = 0
    _held: int = 0

    @contextmanager
    def held(self, what: str) -> Iterator[None]:
        """A question, or a step of one, by this thread alone.

        Raises:
            DistributedError: a question of another thread is open.
        """
        with _guard:
            me = threading.get_ident()
            if self.ranks > 1 and self._held and self._thread != me:
                raise DistributedError(
                    f"{what}: the processes of a group answer one question after the other.",
                    "another thread's question, which is open",
                    "give each thread a group of its own (torch.distributed.new_group, group=), or ask from one thread",
                )
            self._thread = me
            self._held += 1
        try:
            yield
        finally:
            with _guard:
                self._held -= 1

    def begin_exchange(self) -> None:
        """Count an exchange, and a question where none is open."""
        self.exchanges += 1
        if self.fresh or not self.depth:
            self.questions, self.made = self.questions + 1, 0
        self.fresh = False

    def ended(self, repeat: Repeat | None) -> None:
        """Note how an exchange went well: what came twice in a row is expected again."""
        asked = "" if repeat is None else repeat.asked
        self.repeat = repeat if asked and asked == self._last else None
        self._last = asked

    def note_told(self, error: BaseException) -> None:
        """Note an error that needs not be told to the others, until the open question ends."""
        if self.depth:
            self.told = error

    def knows(self, error: BaseException) -> bool:
        """Whether the others know of this error, or of the one it came from."""
        seen: set[int] = set()
        now: BaseException | None = error
        while now is not None and id(now) not in seen:
            if now is self.told:
                return True
            seen.add(id(now))
            now = now.__cause__ or now.__context__
        return False


_guard = threading.Lock()  # not of a Standing, so that it can be pickled
_standings: weakref.WeakKeyDictionary[Any, Standing] = weakref.WeakKeyDictionary()


def group_and_standing(group: dist.ProcessGroup | None) -> tuple[dist.ProcessGroup | None, Standing]:
    """The group that is meant, and where it stands; no group where this process is alone.

    Raises:
        StructureError: not a group. DistributedError: several processes were started and have no group yet, the group is
            another process's, or was destroyed.
    """
    if not (group is None or (dist.is_available() and isinstance(group, dist.ProcessGroup))):
        asked, remedy = "group= is a process group.", "pass what torch.distributed.new_group gives, or leave group= away"
        if group is dist.GroupMember.NON_GROUP_MEMBER:
            raise DistributedError(asked, "that of other processes (new_group gave NON_GROUP_MEMBER)", "leave this process out")
        raise StructureError(asked, f"a {type(group).__name__}: {group!r}"[:200], remedy)
    if not (dist.is_available() and dist.is_initialized()):
        if group is not None:
            raise DistributedError("Processes that work together need a group.", "a group that was destroyed", AGAIN)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise DistributedError(
                "Processes that work together need a group.",
                f"{os.environ['WORLD_SIZE']} processes (WORLD_SIZE) and no group",
                "call torch.distributed.init_process_group() first",
            )
        return None, Standing()
    group = dist.group.WORLD if group is None else group
    assert group is not None
    rank = _rank_in(group)
    if rank < 0:
        found, remedy = "a group of other processes, or one that was destroyed", f"leave this process out; {AGAIN}"
        raise DistributedError("Data are spread over the processes of a group.", found, remedy)
    if group not in _standings:
        members = ",".join(map(str, dist.get_process_group_ranks(group)))
        name = f"{hash_text(f'{group.group_name} {members}')}"
        _standings[group] = Standing(rank, dist.get_world_size(group), name)
    return group, _standings[group]


def lost(group: dist.ProcessGroup | None, *, alone: bool) -> str:
    """Why processes cannot go on with a group, or "".

    Args:
        group: what is left of it.
        alone: whether this process never had one.
    """
    if alone:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            return f"data that were spread before the group of {dist.get_world_size()} processes was made"
        return ""
    if group is None or not dist.is_initialized() or _rank_in(group) < 0:
        return "their group was destroyed (torch.distributed.destroy_process_group)"
    return ""


def _rank_in(group: dist.ProcessGroup) -> int:
    try:
        return dist.get_rank(group)
    except ValueError:  # PyTorch does not know it any more
        return -1


AGAIN = "call torch.distributed.init_process_group() (or new_group), and spread the data anew"
