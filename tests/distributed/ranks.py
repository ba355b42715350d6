"""Processes that hold a gloo group together and run a function as its ranks; kept between tests.

    values = run_ranks(function, 2, x, y)          # function(rank, x, y) in each; its values by rank, or the first exception
    outcomes = try_ranks(function, 3, timeout=20)  # an Outcome a rank: a value, an exception, a death, or no word in time

Functions, arguments and values are pickled: functions at the top of a test module, tensors on the CPU.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any, Literal

_START_SECONDS = 120.0  # for importing torch on a busy machine
_PART_SECONDS = 2.0  # that a rank in error waits for the others before its process is given up


@dataclass(frozen=True)
class Outcome:
    """What became of one rank.

    Attributes:
        kind: "value"; "error"; "died": the process is gone; "hung": no word within the time, and it was killed.
        value: what the function returned.
        error: what it raised.
        trace: the traceback of the error as text.
        seconds: that the function ran.
    """

    kind: Literal["value", "error", "died", "hung"]
    value: Any = None
    error: BaseException | None = None
    trace: str = ""
    seconds: float = 0.0


def run_ranks(
    function: Callable[..., Any], ranks: int, *args: Any, timeout: float = 240.0, group_timeout: float = 120.0
) -> list[Any]:
    """The values of ``function(rank, *args)`` on so many ranks of one gloo group; an error, death or hang fails the test."""
    outcomes = try_ranks(function, ranks, *args, timeout=timeout, group_timeout=group_timeout)
    for rank, outcome in enumerate(outcomes):
        if outcome.error is not None:
            raise AssertionError(f"rank {rank} of {ranks}:\n{outcome.trace}") from outcome.error
    for rank, outcome in enumerate(outcomes):
        assert outcome.kind == "value", f"rank {rank} of {ranks} {outcome.kind}"
    return [outcome.value for outcome in outcomes]


def try_ranks(
    function: Callable[..., Any], ranks: int, *args: Any, timeout: float = 240.0, group_timeout: float = 120.0
) -> list[Outcome]:
    """As `run_ranks`, with what became of each rank instead of an exception.

    Args:
        function: ``function(rank, *args)``, run where ``torch.distributed`` is initialized with gloo.
        ranks: how many.
        args: what it takes besides.
        timeout: seconds for all of it; a rank that has not answered by then is killed, and is "hung".
        group_timeout: seconds, of the process group itself.
    """
    workers = [_worker(place) for place in range(ranks)]
    with tempfile.TemporaryDirectory() as folder:
        meeting = os.path.join(folder, "meeting")
        job = pickle.dumps((function, args))
        for rank, worker in enumerate(workers):
            worker.send((job, rank, ranks, meeting, group_timeout))
        end = time.monotonic() + timeout
        return [worker.receive(end) for worker in workers]


class _Worker:
    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")  # processes are forked from one that has imported torch, unused
        context.set_forkserver_preload(["torch", "torch.distributed", "hesse", "hesse.distributed"])
        self.pipe, theirs = context.Pipe()
        self.process: ForkServerProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False
        self.began = 0.0

    def send(self, message: Any) -> None:
        self.wait_until_ready()
        self.began = time.monotonic()
        self.pipe.send(message)

    def wait_until_ready(self) -> None:
        if not self.ready:
            assert self.pipe.poll(_START_SECONDS), "a process did not start"
            assert self.pipe.recv() == "ready"
            self.ready = True

    def receive(self, end: float) -> Outcome:
        try:
            came = self.pipe.poll(max(end - time.monotonic(), 0.0))
            answer = self.pipe.recv_bytes() if came else None
        except (EOFError, OSError):
            self.stop()
            return Outcome("died", seconds=time.monotonic() - self.began)
        if answer is None:
            self.stop()
            return Outcome("hung", seconds=time.monotonic() - self.began)
        kind, value, trace, seconds, clean = pickle.loads(answer)
        if not clean:
            self.stop()  # what is left of a broken group may hang: the next test gets a fresh process
        return Outcome(kind, value if kind == "value" else None, value if kind == "error" else None, trace, seconds)

    def stop(self) -> None:
        """Kill the process, if it is there."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    @property
    def alive(self) -> bool:
        return not self.pipe.closed and self.process.is_alive()


_workers: list[_Worker] = []


def _worker(place: int) -> _Worker:
    """The process of this place, a new one if it is gone (all places up to it are started at once)."""
    while len(_workers) <= place:
        _workers.append(_Worker())
    if not _workers[place].alive:
        if not _workers[place].pipe.closed:
            _workers[place].stop()
        _workers[place] = _Worker()
    return _workers[place]


@atexit.register
def _stop_all() -> None:
    for worker in _workers:
        if worker.alive:
            worker.stop()


def _serve(pipe: Connection) -> None:
    """The life of a process: one job after the other."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import torch

    import hesse  # noqa: F401 - so that the first job does not pay for it

    torch.set_num_threads(1)
    pipe.send("ready")
    while True:
        try:
            job, rank, ranks, meeting, group_timeout = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send_bytes(_answer(job, rank, ranks, meeting, group_timeout))


def _answer(job: bytes, rank: int, ranks: int, meeting: str, group_timeout: float) -> bytes:
    import torch.distributed as dist

    began = time.monotonic()
    try:
        function, args = pickle.loads(job)
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks, timeout=timedelta(seconds=group_timeout)
        )
        began = time.monotonic()
        kind, value, trace = "value", function(rank, *args), ""
    except BaseException as error:
        kind, value, trace = "error", error, traceback.format_exc()
    seconds = time.monotonic() - began
    clean = _parts(group_timeout if kind == "value" else _PART_SECONDS)
    try:
        answer = pickle.dumps((kind, value, trace, seconds, clean))
        pickle.loads(answer)
        return answer
    except Exception:  # it cannot be pickled
        return pickle.dumps(("error", RuntimeError(f"{type(value).__name__}: {value}"), trace, seconds, clean))


def _parts(seconds: float) -> bool:
    """Leave the group together; whether that worked, so that the process can be used again."""
    import torch.distributed as dist

    try:
        dist.monitored_barrier(timeout=timedelta(seconds=seconds))
        dist.destroy_process_group()
    except Exception:
        return False
    return True
