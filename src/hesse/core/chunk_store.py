"""Arrays larger than memory in a folder of the zarr format: written chunk by chunk, resumed after any end, never overwritten.

The folder is a zarr group. Its ``zarr.json`` holds hesse's header, among it who the content is of (`identity`) and whether all
of it is there. A chunk's file appears complete or not at all, so that what a killed writer leaves behind is complete chunks and
nothing else that counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hesse.core.chunk_store_files import (
    StoreError,
    checksum,
    clear_temporaries,
    folder_of,
    locked,
    refused,
    require_disk,
    write_json,
)
from hesse.core.chunk_store_layout import CHECKSUM_BYTES, ArrayLayout, Index
from hesse.core.chunk_store_writer import ArrayWriter, chunk_path
from hesse.core.errors import DataError, StructureError
from hesse.core.progress import track

FORMAT = 1
Mode = Literal["create", "resume"]
_ENTRY, _JSON, _LOCK = "hesse", "zarr.json", ".create.lock"
_SIGNED = {8: np.int64, 4: np.int32, 2: np.int16}
_READS = "hesse reads folders that it has written."


class ChunkStore:
    """A folder of arrays in chunks; made by `create` or `open`.

    Attributes:
        path: of the folder.
        header: "kind", "identity" (name -> what has to be the same in a resumed run), "facts" (anything else), "complete".
        arrays: name -> layout, in the order they were given.
    """

    def __init__(self, path: Path, header: dict[str, Any], arrays: dict[str, ArrayLayout]) -> None:
        self.path, self.header, self.arrays = path, header, arrays

    @property
    def kind(self) -> str:
        """What the folder holds."""
        return self.header["kind"]

    @property
    def facts(self) -> dict[str, Any]:
        """What the reader has to know besides."""
        return self.header["facts"]

    @property
    def complete(self) -> bool:
        """Whether every chunk was there when the folder was sealed."""
        return self.header["complete"]

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        kind: str,
        arrays: Mapping[str, ArrayLayout],
        identity: Mapping[str, Any],
        facts: Mapping[str, Any],
        *,
        mode: Mode = "create",
    ) -> ChunkStore:
        """Begin a folder, or go on with one.

        Args:
            path: of the folder; it may be there if it is empty.
            kind: what it will hold.
            arrays: name -> layout.
            identity: name -> what the content depends on (a fingerprint, settings), as JSON.
            facts: what a reader needs, as JSON; a resumed folder keeps its own.
            mode: "create" refuses a folder with anything in it; "resume" goes on with one of the same kind, arrays and
                identity, and begins one where there is none.

        Returns:
            The store; `complete` if nothing is left to do.

        Raises:
            StoreError: something is there; the disk has less room than needed. DataError: another kind, identity or layout.

        Cost: of a complete folder, all of it is read: a chunk that is damaged is one that is left to do.
        """
        cls.require_new(path, mode)
        folder = folder_of(path)
        if (folder / _JSON).exists():
            store = cls.open(folder)
            store._require_same(kind, arrays, identity)
            if store.complete and any(store.missing(name, verify=True) for name in arrays):
                store.header["complete"] = False
        else:
            _require_room(folder, {name: (layout, layout.count) for name, layout in arrays.items()})
            store = cls._begin(folder, kind, dict(arrays), {"identity": dict(identity), "facts": dict(facts)})
        return store

    @classmethod
    def _begin(cls, folder: Path, kind: str, arrays: dict[str, ArrayLayout], said: dict[str, Any]) -> ChunkStore:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refused(folder, error) from error
        with locked(folder / _LOCK, f"'{folder}'"):
            if (folder / _JSON).exists():
                raise StoreError(
                    "A folder of stored chunks is begun once.", f"another writer has begun '{folder}'", 'pass mode="resume"'
                )
            for name, layout in arrays.items():
                axes = [f"axis {number}" for number in range(len(layout.shape))]
                write_json(folder / name / _JSON, layout.to_zarr(axes, {}))
            header = {"format": FORMAT, "version": version("hesse"), "kind": kind, "arrays": list(arrays), **said}
            store = cls(folder, json.loads(json.dumps({**header, "complete": False})), arrays)
            store._write_header()
        return store

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ChunkStore:
        """The store in a folder.

        Raises:
            StoreError: no folder, one that was written by something else or is of a newer format, or a damaged header.
        """
        folder = folder_of(path)
        header = _header(folder)
        if header["format"] > FORMAT:
            raise StoreError(
                _READS,
                f"'{folder}' has format {header['format']}, written by hesse {header.get('version')}; this one reads {FORMAT}",
                "pip install --upgrade hesse",
            )
        arrays = {name: ArrayLayout.of_zarr(_json(folder / name / _JSON), str(folder / name)) for name in header["arrays"]}
        return cls(folder, header, arrays)

    @staticmethod
    def require_new(path: str | os.PathLike[str], mode: Mode) -> None:
        """Refuse what `create` would refuse by the path alone.

        Raises:
            StoreError: something is there. StructureError: no such mode.
        """
        require_mode(mode)
        folder = folder_of(path)
        if mode == "resume" and (folder / _JSON).exists():
            return
        if folder.exists() and not folder.is_dir():
            raise StoreError("Chunks are written to a folder of their own.", f"a file at '{folder}'", "pass another path")
        hardly = folder.exists() and mode == "resume" and _is_ours(folder)
        if folder.exists() and any(folder.iterdir()) and not hardly:
            ours = (folder / _JSON).exists() and _ENTRY in _json(folder / _JSON).get("attributes", {})
            shown = "a folder that hesse has written" if ours else "a folder with other files in it"
            remedy = 'pass mode="resume" to go on with it, another path, or remove it' if ours else "pass another path"
            raise StoreError("Nothing is ever overwritten.", f"{shown}: '{folder}'", remedy)

    def _require_same(self, kind: str, arrays: Mapping[str, ArrayLayout], identity: Mapping[str, Any]) -> None:
        asked = f"A run goes on with '{self.path}' only where it would write the same numbers."
        remedy = "resume with what it was begun with, or write to another folder"
        if kind != self.kind:
            raise DataError(asked, f"it holds {self.kind!r}, not {kind!r}", remedy)
        ours, theirs = json.loads(json.dumps(dict(identity))), self.header["identity"]
        for name in {**theirs, **ours}:
            if ours.get(name) != theirs.get(name):
                raise DataError(asked, f"not the same {name}: {_difference(theirs.get(name), ours.get(name))}", remedy)
        for name in {**self.arrays, **arrays}:
            if self.arrays.get(name) != arrays.get(name):
                raise DataError(asked, f"'{name}' is {self.arrays.get(name)} there, {arrays.get(name)} now", remedy)

    def missing(self, name: str, *, verify: bool = False) -> list[Index]:
        """The chunks of an array that are not there, or not of their full size.

        Args:
            name: of the array.
            verify: also those whose checksum is wrong. Cost: reads the whole array.
        """
        layout, folder = self.arrays[name], self.path / name
        every = track(layout.indices(), f"checking '{name}'", layout.count) if verify else layout.indices()
        return [index for index in every if not _is_there(chunk_path(folder, index), layout, verify)]

    @contextmanager
    def writer(self, name: str, *, rank: int = 0) -> Iterator[ArrayWriter]:
        """A writer of one array; chunks that are there and whole (their checksums are read) stay.

        Args:
            name: of the array.
            rank: which of several writers that fill one array together, each its own chunks; two of the same rank exclude
                each other.

        Raises:
            StoreError: another writer is at work, or the disk has less room than what is missing needs.
            StructureError: a chunk got some of its numbers, but not all.
        """
        layout = self.arrays[name]
        with locked(self.path / f".{name}.{rank}.lock", f"'{self.path}'"):
            clear_temporaries(self.path / name, str(rank))
            missing = self.missing(name, verify=True)
            _require_room(self.path, {name: (layout, len(missing))})
            writer = ArrayWriter(self.path / name, layout, missing, rank)
            yield writer
            writer.close()

    def seal(self) -> None:
        """Mark the folder as complete. Every chunk has to be there in its full size.

        Raises:
            StoreError: one is missing.
        """
        for name in self.arrays:
            missing = self.missing(name)
            if missing:
                raise StoreError(
                    f"'{self.path}' is marked as complete once it is.",
                    f"{len(missing)} of {self.arrays[name].count} chunks of '{name}' missing, the first {list(missing[0])}",
                    'write the rest with mode="resume"',
                )
        self.header["complete"] = True
        self._write_header()
        clear_temporaries(self.path)
        for left in self.path.glob(".*.lock"):
            left.unlink(missing_ok=True)

    def read(self, name: str, index: Index) -> Tensor:
        """One chunk, cut to the array's extent.

        Raises:
            StoreError: it is missing, truncated, or has other bytes than were written.
        """
        layout, path = self.arrays[name], chunk_path(self.path / name, index)
        asked = f"Chunk {list(index)} of '{name}' is read as it was written."
        try:
            data = np.fromfile(path, np.uint8)
        except FileNotFoundError as error:
            raise StoreError(asked, f"no file '{path}'", "write the rest, or read complete rows only") from error
        except OSError as error:
            found = f"'{path}' cannot be read ({error.strerror})"
            raise StoreError(asked, found, "make it readable, or write it again") from error
        _require_intact(data, layout, path, asked)
        little = data[:-CHECKSUM_BYTES].view(np.dtype(_SIGNED[layout.dtype.itemsize]).newbyteorder("<"))
        found = torch.from_numpy(little.astype(little.dtype.newbyteorder("="), copy=False)).view(layout.dtype)
        return found.reshape(layout.chunks)[tuple(slice(s.stop - s.start) for s in layout.extent(index))]

    def _write_header(self) -> None:
        entry = {"zarr_format": 3, "node_type": "group", "attributes": {_ENTRY: self.header}}
        write_json(self.path / _JSON, entry)


def require_mode(mode: str) -> None:
    """Raise `StructureError` for a mode that is neither "create" nor "resume"."""
    if mode not in ("create", "resume"):
        raise StructureError('mode= is "create" or "resume".', repr(mode), "nothing is ever overwritten")


def _require_room(folder: Path, wanted: Mapping[str, tuple[ArrayLayout, int]]) -> None:
    for layout, files in wanted.values():
        require_disk(folder, files, layout.file_bytes, str(layout))


def _is_ours(folder: Path) -> bool:
    """Whether a folder without a header holds nothing but the beginning of a store."""
    inside = [found for found in folder.rglob("*") if found.is_file()]
    left = all(found.name in (_JSON, _LOCK) or found.name.endswith(".partial") for found in inside)
    return left and (folder / _LOCK).exists()


def _is_there(path: Path, layout: ArrayLayout, verify: bool) -> bool:
    try:
        if not verify or path.stat().st_size != layout.file_bytes:
            return path.stat().st_size == layout.file_bytes
        data = np.fromfile(path, np.uint8)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return _is_intact(data)


def _is_intact(data: np.ndarray) -> bool:
    return checksum(data[:-CHECKSUM_BYTES]) == data[-CHECKSUM_BYTES:].tobytes()


def _require_intact(data: np.ndarray, layout: ArrayLayout, path: Path, asked: str) -> None:
    found = ""
    if len(data) != layout.file_bytes:
        found = f"'{path}' has {len(data)} bytes instead of {layout.file_bytes}"
    elif not _is_intact(data):
        found = f"'{path}' has other bytes than were written (its checksum is wrong)"
    if found:
        raise StoreError(asked, found, 'write it again: mode="resume" finds damaged chunks')


def _header(folder: Path) -> dict[str, Any]:
    """What hesse has noted of a folder."""
    if not folder.is_dir():
        found = f"'{folder}' is a file" if folder.exists() else f"no folder '{folder}'"
        raise StoreError(_READS, found, "pass the path that it was written to")
    if not (folder / _JSON).exists():
        raise StoreError(_READS, f"no '{_JSON}' in '{folder}'", "pass the folder that was written, not one above it")
    entry = _json(folder / _JSON)
    header = (entry.get("attributes") or {}).get(_ENTRY)
    kinds = {"format": int, "kind": str, "arrays": list, "identity": dict, "facts": dict, "complete": bool}
    if not isinstance(header, dict) or any(not isinstance(header.get(name), kind) for name, kind in kinds.items()):
        what = {"array": "an array", "group": "a group"}.get(str(entry.get("node_type")), "something")
        found = f"'{folder}' holds {what} that another program has written (or one of hesse's arrays alone)"
        raise StoreError(_READS, found, "open it with zarr.open, or pass the folder that hesse has written")
    return header


def _json(path: Path) -> dict[str, Any]:
    try:
        entry = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(_READS, f"'{path}' cannot be read ({error})", "pass a folder that hesse has written") from error
    return entry if isinstance(entry, dict) else {}


def _difference(theirs: Any, ours: Any) -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys: Sequence[Any] = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
        shown = [f"{key} {theirs.get(key)!r} there, {ours.get(key)!r} now" for key in keys[:3]]
        return "; ".join(shown)
    return f"{theirs!r} there, {ours!r} now"
