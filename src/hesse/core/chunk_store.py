"""Arrays larger than memory in a folder of the zarr format: written chunk by chunk, resumed after any end, never overwritten.

The folder is a zarr group. Its ``zarr.json`` holds hesse's header, among it who the content is of (`identity`) and whether all
of it is there. A chunk's file appears complete or not at all, so that what a killed writer leaves behind is complete chunks and
nothing else that counts. What belongs where is noted (`chunk_store_seal`): a chunk in another one's place is a damaged one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
from hesse.core.chunk_store_seal import Places, clear_records, has_its_hash, seal, with_hash
from hesse.core.chunk_store_writer import ArrayWriter, chunk_path
from hesse.core.errors import DataError, StructureError
from hesse.core.progress import track

FORMAT = 1
Mode = Literal["create", "resume"]
_AGAIN = 'write it again: mode="resume" finds damaged chunks'
_ENTRY, _JSON, _LOCK = "hesse", "zarr.json", ".create.lock"
_SIGNED = {8: np.int64, 4: np.int32, 2: np.int16}
_READS = "hesse reads folders that it has written."
_RESTORE = "restore that file, or write another folder"


class ChunkStore:
    """A folder of arrays in chunks; made by `create` or `open`.

    Attributes:
        path: of the folder.
        header: "kind", "arrays" (name -> layout), "identity" (name -> what has to be the same in a resumed run), "facts"
            (anything else), "complete", "checksums" (array -> those of its chunks, once complete), "hash" (of all the others).
        arrays: name -> layout, in the order they were given.
    """

    def __init__(self, path: Path, header: dict[str, Any], arrays: dict[str, ArrayLayout]) -> None:
        self.path, self.header, self.arrays = path, header, arrays
        sealed = header["checksums"]
        self._places = {name: Places(path / name, layout, sealed.get(name, "")) for name, layout in arrays.items()}

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
            MissingExtraError: google-crc32c, which comes with zarr, is not installed.

        Cost: of a complete folder, all of it is read: a chunk that is damaged is one that is left to do.
        """
        cls.require_new(path, mode)
        checksum(b"")  # refused before a folder is begun
        folder = folder_of(path)
        if (folder / _JSON).exists():
            store = cls.open(folder)
            store._require_same(kind, arrays, identity)
            if store.complete and any(store.missing(name, verify=True) for name in arrays):
                store.header["complete"] = False
            if store.complete:
                with suppress(OSError):  # a folder that may only be read
                    clear_records(folder)
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
            layouts = {name: _described(layout) for name, layout in arrays.items()}
            header = {"format": FORMAT, "version": version("hesse"), "kind": kind, "arrays": layouts, **said}
            store = cls(folder, json.loads(json.dumps({**header, "complete": False, "checksums": {}})), arrays)
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
        if not has_its_hash(header):
            found = f"'{folder / _JSON}' says something else than was written (its hash is wrong)"
            raise StoreError(_READS, found, _RESTORE)
        return cls(folder, header, {name: _layout(folder, name, said) for name, said in header["arrays"].items()})

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
            verify: also those whose checksum is wrong, or another place's. Cost: reads the whole array.
        """
        layout, folder = self.arrays[name], self.path / name
        every = track(layout.indices(), f"checking '{name}'", layout.count) if verify else layout.indices()
        if not verify:
            return [index for index in every if not _is_there(chunk_path(folder, index), layout)]
        return [index for index in every if not self._is_whole(name, index, _data(chunk_path(folder, index), layout))]

    def _is_whole(self, name: str, index: Index, data: np.ndarray | None) -> bool:
        return data is not None and _is_intact(data) and self._places[name].holds(index, _check(data))

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
        """Mark the folder as complete. Every chunk has to be there in its full size, with the checksum of its place.

        Raises:
            StoreError: one is missing.
        """
        sealed: dict[str, str] = {}
        for name, layout in self.arrays.items():
            checks = {i: _last(chunk_path(self.path / name, i), layout) for i in layout.indices()}
            missing = [i for i, check in checks.items() if not self._places[name].holds(i, check)]
            sealed[name] = seal(checks.values())
            if missing:
                raise StoreError(
                    f"'{self.path}' is marked as complete once it is.",
                    f"{len(missing)} of {self.arrays[name].count} chunks of '{name}' missing, the first {list(missing[0])}",
                    'write the rest with mode="resume"',
                )
        self.header |= {"complete": True, "checksums": sealed}
        self._write_header()
        self._places = {name: Places(self.path / name, layout, sealed[name]) for name, layout in self.arrays.items()}
        clear_temporaries(self.path)
        clear_records(self.path)
        for left in self.path.glob(".*.lock"):
            left.unlink(missing_ok=True)

    def read(self, name: str, index: Index) -> Tensor:
        """One chunk, cut to the array's extent.

        Raises:
            StoreError: it is missing, truncated, or has other bytes than were written there.
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
        if not self._places[name].holds(index, _check(data)):
            found = f"'{path}' has the bytes of another chunk (its checksum is not the one of this place)"
            raise StoreError(asked, found, _AGAIN)
        little = data[:-CHECKSUM_BYTES].view(np.dtype(_SIGNED[layout.dtype.itemsize]).newbyteorder("<"))
        found = torch.from_numpy(little.astype(little.dtype.newbyteorder("="), copy=False)).view(layout.dtype)
        return found.reshape(layout.chunks)[tuple(slice(s.stop - s.start) for s in layout.extent(index))]

    def _write_header(self) -> None:
        self.header = with_hash(self.header)
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


def _is_there(path: Path, layout: ArrayLayout) -> bool:
    try:
        return path.stat().st_size == layout.file_bytes
    except (FileNotFoundError, NotADirectoryError):
        return False


def _data(path: Path, layout: ArrayLayout) -> np.ndarray | None:
    """The bytes of a chunk's file, if it is there in its full size."""
    try:
        return np.fromfile(path, np.uint8) if _is_there(path, layout) else None
    except FileNotFoundError:
        return None


def _last(path: Path, layout: ArrayLayout) -> bytes:
    """The checksum at the end of a chunk's file, nothing if it is not there in its full size."""
    if not _is_there(path, layout):
        return b""
    with path.open("rb") as file:
        file.seek(-CHECKSUM_BYTES, os.SEEK_END)
        return file.read()


def _check(data: np.ndarray) -> bytes:
    return data[-CHECKSUM_BYTES:].tobytes()


def _is_intact(data: np.ndarray) -> bool:
    return checksum(data[:-CHECKSUM_BYTES]) == _check(data)


def _require_intact(data: np.ndarray, layout: ArrayLayout, path: Path, asked: str) -> None:
    found = ""
    if len(data) != layout.file_bytes:
        found = f"'{path}' has {len(data)} bytes instead of {layout.file_bytes}"
    elif not _is_intact(data):
        found = f"'{path}' has other bytes than were written (its checksum is wrong)"
    if found:
        raise StoreError(asked, found, _AGAIN)


def _header(folder: Path) -> dict[str, Any]:
    """What hesse has noted of a folder."""
    if not folder.is_dir():
        found = f"'{folder}' is a file" if folder.exists() else f"no folder '{folder}'"
        raise StoreError(_READS, found, "pass the path that it was written to")
    if not (folder / _JSON).exists():
        raise StoreError(_READS, f"no '{_JSON}' in '{folder}'", "pass the folder that was written, not one above it")
    entry = _json(folder / _JSON)
    header = (entry.get("attributes") or {}).get(_ENTRY)
    kinds = {"format": int, "kind": str, "identity": dict, "facts": dict, "complete": bool}
    kinds |= {"arrays": dict, "checksums": dict}
    if not isinstance(header, dict) or any(not isinstance(header.get(name), kind) for name, kind in kinds.items()):
        what = {"array": "an array", "group": "a group"}.get(str(entry.get("node_type")), "something")
        found = f"'{folder}' holds {what} that another program has written (or one of hesse's arrays alone)"
        raise StoreError(_READS, found, "open it with zarr.open, or pass the folder that hesse has written")
    return header


def _described(layout: ArrayLayout) -> dict[str, Any]:
    dtype = str(layout.dtype).removeprefix("torch.")
    return {"shape": list(layout.shape), "chunks": list(layout.chunks), "dtype": dtype}


def _layout(folder: Path, name: str, said: Any) -> ArrayLayout:
    """The layout of an array, which its own file and the header give alike."""
    path = folder / name / _JSON
    layout = ArrayLayout.of_zarr(_json(path), str(folder / name))
    if _described(layout) != said:
        found = f"'{path}' says {_described(layout)}, where {said} was written"
        raise StoreError("hesse reads arrays that it has written.", found, _RESTORE)
    return layout


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
