"""Files that appear complete or not at all, a lock that dies with its process, and room on the disk."""

from __future__ import annotations

import errno
import json
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from hesse.core.errors import MissingExtraError, StoreError, StructureError
from hesse.core.memory import format_bytes

Data = bytes | memoryview
_MAX_WRITE = 2**24
_TEMPORARY = ".partial"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_held: set[str] = set()
_held_lock = threading.Lock()


def folder_of(path: str | os.PathLike[str]) -> Path:
    """The folder that a path means, ``~`` being the user's home.

    Raises:
        StructureError: an address of another kind than a path, or no path. StoreError: the system cannot look there.
    """
    asked, remedy = "Rows are stored in a folder of the file system.", "pass a path"
    if isinstance(path, str) and "://" in path:
        raise StructureError(asked, repr(path), remedy)
    try:
        folder = Path(os.path.realpath(os.path.expanduser(os.fsdecode(path))))
        folder.exists()
    except (TypeError, ValueError) as error:
        raise StructureError(asked, f"{path!r} ({error})", remedy) from error
    except OSError as error:
        raise StoreError(asked, f"{path!r} ({error.strerror})", "pass another path") from error
    return folder


def checksum(data: Data | np.ndarray) -> bytes:
    """CRC-32C of the bytes, as zarr stores it.

    Raises:
        MissingExtraError: zarr (which brings the function) is not installed.
    """
    try:
        import google_crc32c
    except ImportError as error:
        raise MissingExtraError(
            "Stored chunks carry a CRC-32C.", "google-crc32c is not installed", "pip install 'hesse[storage]'"
        ) from error
    return int(google_crc32c.value(np.frombuffer(data, np.uint8))).to_bytes(4, "little")  # it takes no memoryview


def write_file(path: Path, parts: Sequence[Data], writer: str = "0") -> None:
    """Write a file, which appears complete or not at all; when this returns it outlives a loss of power.

    Args:
        path: of the file; one that is there is replaced.
        parts: its bytes.
        writer: part of the temporary name, by which `clear_temporaries` finds what this writer has left behind.

    Raises:
        StoreError: no room on the disk, or within the quota, or the system refuses for another reason.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.{writer}{_TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            for part in parts:
                _write_all(file, memoryview(part).cast("B"))
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise refused(path, error) from error
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, which is made where there is none; when this returns it outlives a loss of power.

    The line stands between two ends of line, so that one which a killed writer left unfinished spoils no other.

    Raises:
        StoreError: as `write_file`.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            _write_all(file, memoryview(f"\n{line}\n".encode()))
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise refused(path, error) from error


def refused(path: Path, error: OSError) -> StoreError:
    """The error for what the system refuses to write at a path."""
    if error.errno not in _NO_ROOM:
        remedy = 'see to that, or write to another place; what is complete stays, and mode="resume" goes on'
        return StoreError(f"'{path}' is written to.", error.strerror or str(error), remedy)
    return StoreError(
        f"Writing '{path}' needs room on the disk.",
        f"{error.strerror}; {format_bytes(free_disk(path))} are free",
        'make room and go on with mode="resume": what is complete stays',
    )


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data[:_MAX_WRITE]) :]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot sync a folder
            os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, entry: Any) -> None:
    """Write JSON, as `write_file` does."""
    write_file(path, [json.dumps(entry, indent=2).encode()])


def clear_temporaries(folder: Path, writer: str = "*") -> None:
    """Remove what a writer that was killed has left behind in a folder and below it; nobody else may write as that one."""
    for found in folder.rglob(f".*.{writer}{_TEMPORARY}"):
        found.unlink(missing_ok=True)


def free_disk(path: Path) -> int:
    """Bytes that are free where a path is, or will be."""
    while not path.exists():
        path = path.parent
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def require_disk(path: Path, files: int, file_bytes: int, what: str) -> None:
    """Refuse to begin what does not fit on the disk.

    Args:
        path: where the files will be.
        files: how many.
        file_bytes: of each; every file takes whole blocks.
        what: how the error names them.

    Raises:
        StoreError: less is free than needed, with both numbers.
    """
    while not path.exists():
        path = path.parent
    block = os.statvfs(path).f_frsize
    needed, free = files * -(-file_bytes // block) * block, free_disk(path)
    if needed > free:
        raise StoreError(
            f"{what} needs {format_bytes(needed)} ({needed} bytes) on the disk of '{path}'.",
            f"{format_bytes(free)} ({free} bytes) free",
            "make room, or write to another disk",
        )


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, which no other writer can then hold; the system releases it when the process ends, however it ends.

    A record lock of POSIX: unlike one of `flock` it is not inherited by forked processes (workers of a data loader), which
    would hold it on after their parent was killed. Threads of one process are told apart by a list of the locks held.

    Args:
        path: of the lock file, removed at the end unless that is an error.
        what: how the error names what is locked.

    Raises:
        StoreError: another writer holds it, or there can be no such file.
    """
    import fcntl

    key = os.path.realpath(path)
    with _held_lock:
        taken = key in _held
        _held.add(key)
    if taken:
        raise _busy(what, "another writer in this process")
    try:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise refused(path, error) from error
        try:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _require_same(file, path)
            except (BlockingIOError, PermissionError, FileNotFoundError) as error:
                raise _busy(what, "another process is writing to it") from error
            yield
            path.unlink(missing_ok=True)
        finally:
            os.close(file)
    finally:
        with _held_lock:
            _held.discard(key)


def _require_same(file: int, path: Path) -> None:
    """The file that was locked is still the one at that path (a writer that ended in between has removed it)."""
    if os.fstat(file).st_ino != path.stat().st_ino:
        raise FileNotFoundError


def _busy(what: str, found: str) -> StoreError:
    return StoreError(f"One writer at a time writes {what}.", found, "wait for it, or write to another folder")
