"""What belongs where in a stored folder: every chunk's checksum by its place, and a hash of what the header says.

While a folder is filled, a record of each chunk is appended to a list before the chunk's file appears: a file without a record
is one that is left to do. A complete folder has all checksums in its header, and no lists.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hesse.core.chunk_store_files import append_line
from hesse.core.chunk_store_layout import ArrayLayout, Index

_RECORD = ".record"
_HASH = "hash"
_LINE = re.compile(r"(\d+(?:/\d+)*) ([0-9a-f]{8})")


def record(folder: Path, index: Index, check: bytes, rank: int) -> None:
    """Note the checksum of a chunk of the array in a folder.

    Raises:
        StoreError: the disk is full, or the system refuses for another reason.
    """
    append_line(folder / f".{rank}{_RECORD}", f"{'/'.join(map(str, index))} {check.hex()}")


def clear_records(folder: Path) -> None:
    """Remove the lists of all arrays of a store."""
    for found in folder.glob(f"*/.*{_RECORD}"):
        found.unlink(missing_ok=True)


class Places:
    """The checksums that the chunks of an array were written with, by place.

    Args:
        folder: of the array.
        layout: its chunk grid.
        sealed: what `seal` has given for a complete folder, else empty.
    """

    def __init__(self, folder: Path, layout: ArrayLayout, sealed: str) -> None:
        self.folder = folder
        checks = [sealed[start : start + 8] for start in range(0, len(sealed), 8)]
        self._sealed = dict(zip(layout.indices(), checks, strict=False))
        self._recorded: dict[Index, set[str]] = {}

    def holds(self, index: Index, check: bytes) -> bool:
        """Whether a chunk with that checksum (nothing: no chunk) was written to that place."""
        if self._sealed.get(index) == check.hex() or check.hex() in self._recorded.get(index, ()):
            return True
        if not check:
            return False
        self._read()
        return check.hex() in self._recorded.get(index, ())

    def _read(self) -> None:
        self._recorded = {}
        for path in self.folder.glob(f".*{_RECORD}"):
            for line in path.read_text(errors="replace").splitlines():
                found = _LINE.fullmatch(line)
                if found is not None:
                    index = tuple(map(int, found[1].split("/")))
                    self._recorded.setdefault(index, set()).add(found[2])


def seal(checks: Iterable[bytes]) -> str:
    """The checksums of all chunks, in the order of their indices, for the header."""
    return b"".join(checks).hex()


def with_hash(header: Mapping[str, Any]) -> dict[str, Any]:
    """A header with the SHA-256 of its canonical JSON (keys sorted, the hash left out)."""
    rest = {name: value for name, value in header.items() if name != _HASH}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, _HASH: hashlib.sha256(text.encode()).hexdigest()}


def has_its_hash(header: Mapping[str, Any]) -> bool:
    """Whether a header says what it said when it was written."""
    return with_hash(header)[_HASH] == header.get(_HASH)
