"""Jacobians and Gram matrices that the processes of a group write into one folder together."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist

from hesse.core.chunk_store import ChunkStore, Mode, require_mode
from hesse.core.chunk_store_layout import DEFAULT_CHUNK_BYTES, ArrayLayout
from hesse.core.errors import DataError, StructureError
from hesse.distributed.differences import hash_text
from hesse.distributed.gram_shares import Shares, agreed_shares, require_rows, shares_by_chunk
from hesse.distributed.link import Link
from hesse.operators.projections import RandomProjection
from hesse.parameters.base import JacobianBySample
from hesse.parameters.storing.gram import GRAM, fill_gram, gram_facts, gram_identity, gram_layout
from hesse.parameters.storing.matrix import StoredMatrix, open_zarr
from hesse.parameters.storing.rows import RowsPart, fill_rows, rows_part

_TIMEOUT = 3600.0
_LEAST = ("samples captured at once", "rows written at once", "memory")  # facts of which the smallest is everybody's
_OWN = {"mass", "data", "environment", *_LEAST}  # what ranks need not have in common
_SEALED = "the folder is complete on rank 0"


def write_rows(
    jacobian: JacobianBySample | None,
    path: str | os.PathLike[str],
    *,
    projection: RandomProjection | None = None,
    mode: Mode = "create",
    chunk_bytes: int | str = DEFAULT_CHUNK_BYTES,
    group: dist.ProcessGroup | None = None,
    timeout: float = _TIMEOUT,
) -> StoredMatrix:
    """Write the rows of a Jacobian whose data lie on several processes to one folder, each process its own rows.

    All processes call this together. The rows are in the order of the ranks; those of a rank are an array of their own, so
    that no chunk has two writers. The folder is sealed once all are there, and not read before. A run that was killed, or lost
    a process, is gone on with by ``mode="resume"`` with the same data on the same number of ranks.

    Args:
        jacobian: of this process's data; None where it has none.
        path: of the folder, which all processes reach under this name.
        projection, mode, chunk_bytes: as for ``jacobian.to_zarr``; the same on all processes.
        group: of `torch.distributed`; by default all processes. Where nothing was started, this process alone.
        timeout: seconds to wait for the others, also when this process has written all its rows: more than they may be behind.

    Returns:
        The rows of all processes, on every process.

    Raises:
        DistributedError: a process failed, is gone, or asks something else; the folder is not sealed then. DataError: no
        process has data; rows by other parameters than another process's; a resumed folder with other data, settings or another
        number of ranks. Others as ``jacobian.to_zarr``.

    Cost: as ``jacobian.to_zarr`` for this process's data; a few hundred bytes are exchanged.
    """
    link = Link(group, timeout)
    with link.asking("write_rows"):
        return _write_rows(link, jacobian, path, projection, mode, chunk_bytes)


def _write_rows(
    link: Link, jacobian: JacobianBySample | None, path: str | os.PathLike[str], projection: RandomProjection | None,
    mode: Mode, chunk_bytes: int | str,
) -> StoredMatrix:
    """As `write_rows`, over a link."""
    require_mode(mode)
    if jacobian is not None:
        require_rows("write_rows", jacobian)
    _require_one_path(link, path)

    def described() -> RowsPart | None:
        return None if jacobian is None else rows_part(jacobian, projection, chunk_bytes)

    def begin() -> bool | None:
        return _begin_rows(parts, path, mode) if link.rank == 0 else None

    parts = link.exchange("rows to a folder", described)
    (is_complete, *_) = link.exchange(f"a folder for rows, mode={mode}", begin)
    if not is_complete:
        link.exchange("rows written", lambda: _fill_rows(jacobian, path, projection, link.rank))
        link.exchange(_SEALED, lambda: ChunkStore.open(path).seal() if link.rank == 0 else None)
    return open_zarr(path)


def write_gram(
    jacobian: JacobianBySample,
    path: str | os.PathLike[str],
    other: JacobianBySample | None = None,
    *,
    mode: Mode = "create",
    chunk_bytes: int | str = DEFAULT_CHUNK_BYTES,
    group: dist.ProcessGroup | None = None,
    timeout: float = _TIMEOUT,
) -> StoredMatrix:
    """Write a Gram matrix to a folder, its blocks computed and written by all processes of a group.

    All processes call this together with Jacobians of the same model on the same data, as for `gram`. Where batches are uneven,
    blocks that share a chunk are one process's. A run that was killed, or lost a process, is gone on with by ``mode="resume"``,
    on any number of ranks.

    Args:
        jacobian, other: as for `gram`.
        path, mode, chunk_bytes, group, timeout: as for `write_rows`.

    Returns:
        The matrix on disk, on every process.

    Raises:
        DistributedError: as for `gram`; the folder is not sealed then. Others as ``jacobian.gram_to_zarr``.

    Cost: as `gram` and the disk; a few hundred bytes are exchanged.
    """
    link = Link(group, timeout)
    with link.asking("write_gram"):
        return _write_gram(link, jacobian, None if other is jacobian else other, path, mode, chunk_bytes)


def _write_gram(
    link: Link, jacobian: JacobianBySample, other: JacobianBySample | None, path: str | os.PathLike[str],
    mode: Mode, chunk_bytes: int | str,
) -> StoredMatrix:
    """As `write_gram`, over a link."""
    require_mode(mode)
    require_rows("write_gram", jacobian, jacobian if other is None else other)
    _require_one_path(link, path)
    shares = agreed_shares(link, jacobian, jacobian if other is None else other)

    def begin() -> tuple[dict[str, int | None], ArrayLayout, bool]:
        plan = shares.plan
        if mode == "resume" and os.path.exists(os.path.join(path, "zarr.json")):
            plan = plan.begun(ChunkStore.open(path).facts)
        layout = gram_layout(jacobian, other, plan, chunk_bytes)
        known = gram_identity(jacobian, other), gram_facts(jacobian, other, plan)
        store = ChunkStore.create(path, GRAM, {GRAM: layout}, *known, mode=mode)
        return plan.facts, layout, store.complete

    (begun, *_) = link.exchange(f"a folder for a Gram matrix, mode={mode}", lambda: begin() if link.rank == 0 else None)
    assert begun is not None
    facts, layout, is_complete = begun
    if not is_complete:
        mine = shares_by_chunk(Shares(shares.plan.begun(facts), shares.tasks), layout)
        link.exchange("a Gram matrix written", lambda: _fill_gram(jacobian, other, mine, path, link.rank))
        link.exchange(_SEALED, lambda: ChunkStore.open(path).seal() if link.rank == 0 else None)
    return open_zarr(path)


def _require_one_path(link: Link, path: str | os.PathLike[str]) -> None:
    """Refuse a path that is no path, or is another one on another process."""

    def hashes() -> dict[str, int]:
        if not isinstance(path, (str, os.PathLike)):
            raise StructureError("A folder is named by its path.", f"a {type(path).__name__}", "pass a str or a pathlib.Path")
        return {"the path": hash_text(os.path.abspath(os.fspath(path)))}

    link.check_same("The folder that all processes write to", hashes)


def _begin_rows(parts: list[RowsPart | None], path: str | os.PathLike[str], mode: Mode) -> bool:
    """Begin the folder, or go on with it; whether nothing is left to do."""
    there = {rank: part for rank, part in enumerate(parts) if part is not None}
    if not there:
        raise DataError("Rows of all processes go to one folder.", "no data on any process", "pass a Jacobian on one of them")
    first_rank, first = next(iter(there.items()))
    for rank, part in there.items():
        found = _differs(first, part)
        if found:
            raise StructureError(
                "Rows of all processes go to one folder.",
                f"{found} on rank {rank} are others than on rank {first_rank}",
                "pass Jacobians of the same model, loss, outputs and projection",
            )
    facts: dict[str, Any] = {**first.facts, "mass": sum(float(part.facts["mass"]) for part in there.values())}  # pyright: ignore[reportArgumentType]
    for name in _LEAST:
        known: list[Any] = [part.facts[name] for part in there.values() if part.facts[name] is not None]
        facts[name] = min(known, default=None)
    arrays = {f"rows.{rank}": part.layout for rank, part in there.items()}
    identity = {f"rank {rank} of {len(parts)}": part.identity for rank, part in there.items()}
    return ChunkStore.create(path, first.kind, arrays, identity, facts, mode=mode).complete


def _differs(first: RowsPart, part: RowsPart) -> str:
    if (first.kind, first.layout.dtype, first.layout.shape[1:]) != (part.kind, part.layout.dtype, part.layout.shape[1:]):
        return f"{part.kind} {list(part.layout.shape[1:])} of {part.layout.dtype}"
    ours, theirs = ({**one.facts, **one.identity, **_settings(one)} for one in (first, part))
    names = (name for name in {**ours, **theirs} if name not in _OWN and ours.get(name) != theirs.get(name))
    return ", ".join(names)


def _settings(part: RowsPart) -> dict[str, Any]:
    """The settings one by one, but for the number of rows."""
    settings = dict(part.identity["settings"])
    each = {**settings, "rows": settings["rows"][1:]}
    return {"settings": None, **{f"settings.{name}": value for name, value in each.items()}}


def _fill_rows(
    jacobian: JacobianBySample | None, path: str | os.PathLike[str], projection: RandomProjection | None, rank: int
) -> None:
    if jacobian is not None:
        fill_rows(jacobian, ChunkStore.open(path), f"rows.{rank}", projection=projection, rank=rank)


def _fill_gram(
    jacobian: JacobianBySample, other: JacobianBySample | None, shares: Shares, path: str | os.PathLike[str], rank: int
) -> None:
    fill_gram(jacobian, other, shares.plan, ChunkStore.open(path), GRAM, tasks=shares.tasks[rank], rank=rank)
