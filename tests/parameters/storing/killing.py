"""A program that writes stored matrices and is killed while it does, in forks of itself: prints what came of each, as JSON.

    python killing.py FOLDER SEED POINTS
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hesse
from hesse.core import chunk_store_files
from hesse.operators.projections import random_projection

KINDS = ("rows", "projected", "outputs", "gram", "kernel")


def jacobian(*, outputs: bool = False, count: int = 5) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, (3, 2)), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 3 * 3, 4))
    sizes = (6, 6, 5, 6, 3)[:count]
    batches = [
        (torch.randn(n, 1, 5, 4, generator=generator), torch.randint(0, 4, (n,), generator=generator)) for n in sizes
    ]
    return hesse.parameter_jacobian(model, None if outputs else nn.CrossEntropyLoss(), batches, memory="1GiB")


def write(kind: str, path: Path) -> None:
    """Write one of the kinds, or go on with it."""
    if kind == "rows":
        jacobian().to_zarr(path, mode="resume", chunk_bytes=1500)
    elif kind == "projected":
        J = jacobian()
        J.to_zarr(path, projection=random_projection(J, 7, seed=3), mode="resume", chunk_bytes=100)
    elif kind == "outputs":
        jacobian(outputs=True, count=2).to_zarr(path, mode="resume", chunk_bytes=1500)
    elif kind == "gram":
        jacobian().gram_to_zarr(path, mode="resume", chunk_bytes=200)
    else:
        jacobian(outputs=True, count=2).gram_to_zarr(path, jacobian(outputs=True, count=3), mode="resume", chunk_bytes=600)


class Watched:
    """The module `os`, whose calls that touch the disk are counted; at one of them the process is killed.

    Args:
        last: the number of that call; None: never.
        where: "before", "after", or "halfway" (of what is written).
    """

    touching = ("open", "write", "fsync", "replace", "close")

    def __init__(self, last: int | None, where: str) -> None:
        self.last, self.where, self.count = last, where, 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        return self._wrap(name, call) if name in self.touching else call

    def _wrap(self, name: str, call: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            due = self.count == self.last
            self.count += 1
            if due and self.where == "halfway" and name == "write":
                call(args[0], args[1][: len(args[1]) // 2])
            if due and self.where != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args)
            if due:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped


def in_fork(kind: str, path: Path, last: int | None, where: str, log: Path) -> tuple[int, int]:
    """Write in a forked process; returns its wait status and, where it came to the end, the calls it made."""
    child = os.fork()
    if child == 0:
        watched = Watched(last, where)
        setattr(chunk_store_files, "os", watched)  # noqa: B010 - for the type checker
        try:
            write(kind, path)
            log.write_text(str(watched.count))
        except BaseException as error:
            log.write_text(repr(error))
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status and not os.WIFSIGNALED(status):
        raise RuntimeError(f"{kind}: {log.read_text()}")
    return status, 0 if status else int(log.read_text())


def files(path: Path) -> dict[str, str]:
    return {str(found.relative_to(path)): found.read_bytes().hex() for found in sorted(path.rglob("*")) if found.is_file()}


def main(folder: Path, seed: int, points: int) -> list[dict[str, Any]]:
    rng, results = random.Random(seed), []
    log = folder / "log"
    whole: dict[str, tuple[int, dict[str, str]]] = {}
    for kind in KINDS:
        _, calls = in_fork(kind, folder / f"whole {kind}", None, "before", log)
        whole[kind] = (calls, files(folder / f"whole {kind}"))
    for point in range(points):
        kind = KINDS[point % len(KINDS)]
        calls, wanted = whole[kind]
        path, kills = folder / f"killed {point}", []
        for _ in range(rng.choice((1, 1, 2))):
            last, where = rng.randrange(calls), rng.choice(("before", "halfway", "after"))
            status, _ = in_fork(kind, path, last, where, log)
            kills.append([last, where, os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL])
        complete = False
        try:
            hesse_complete(path)
            complete = True
        except (chunk_store_files.StoreError, hesse.HesseError, FileNotFoundError):
            pass
        there = sum(name.partition("/c/")[1] != "" and ".partial" not in name for name in files(path)) if path.exists() else 0
        _, resumed = in_fork(kind, path, None, "before", log)
        found = files(path)
        differ = sorted(name for name in {**found, **wanted} if found.get(name) != wanted.get(name))
        said = {"kind": kind, "kills": kills, "of": calls, "there": there, "complete": complete, "calls": resumed}
        results.append({**said, "differ": differ})
    return results


def hesse_complete(path: Path) -> None:
    from hesse.parameters.storing.matrix import open_zarr

    open_zarr(path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
