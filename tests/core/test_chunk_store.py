"""Stored arrays: what is written comes back, nothing is overwritten, what is damaged or incomplete is seen."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import random
import re
import resource
import select
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import Tensor

from hesse.core import chunk_store_files
from hesse.core.chunk_store import ChunkStore
from hesse.core.chunk_store_files import require_disk
from hesse.core.chunk_store_layout import ArrayLayout, balanced, choose_chunks
from hesse.core.errors import DataError, MissingExtraError, StoreError, StructureError, UnsupportedError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPE, CHUNKS = (7, 3, 5), (3, 2, 5)


def numbers(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def begin(path: Path, layout: ArrayLayout | None = None, **options: Any) -> ChunkStore:
    layout = ArrayLayout(SHAPE, CHUNKS, torch.float32) if layout is None else layout
    return ChunkStore.create(path, "test", {"a": layout}, {"model": {"w": "1"}, "loss": "l"}, {"of": "tests"}, **options)


def complete(path: Path, values: Tensor, chunks: tuple[int, ...] = CHUNKS) -> ChunkStore:
    store = begin(path, ArrayLayout(tuple(values.shape), chunks, values.dtype))
    with store.writer("a") as writer:
        writer.add((0,), values)
    store.seal()
    return store


def by_zarr(path: Path, dtype: torch.dtype) -> Tensor:
    """The array as zarr reads it."""
    group: Any = zarr.open(str(path), mode="r")
    found = np.asarray(group["a"][:])
    return torch.from_numpy(found.view(np.int16)).view(dtype) if dtype == torch.bfloat16 else torch.from_numpy(found)


def by_store(store: ChunkStore) -> Tensor:
    layout = store.arrays["a"]
    result = torch.zeros(layout.shape, dtype=layout.dtype)
    for index in layout.indices():
        result[layout.extent(index)] = store.read("a", index)
    return result


@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr_reads_the_same_bits(dtype: torch.dtype, tmp_path: Path, untouched: None) -> None:
    values = numbers(dtype=dtype)
    values[2, 1, 3], values[6, 2, 4] = torch.inf, -0.0
    store = complete(tmp_path / "s", values)
    for found in (by_zarr(tmp_path / "s", dtype), by_store(store), by_store(ChunkStore.open(tmp_path / "s"))):
        assert found.dtype == dtype
        assert np.array_equal(found.view(torch.uint8).numpy(), values.view(torch.uint8).numpy())


def test_size_on_disk_is_known_before(tmp_path: Path) -> None:
    layout = ArrayLayout(SHAPE, CHUNKS, torch.float32)
    assert layout.count == 3 * 2 * 1 and layout.nbytes == 6 * (3 * 2 * 5 * 4 + 4)
    complete(tmp_path / "s", numbers())
    chunks = [found for found in (tmp_path / "s" / "a" / "c").rglob("*") if found.is_file()]
    assert sum(found.stat().st_size for found in chunks) == layout.nbytes
    rest = {str(found.relative_to(tmp_path / "s")) for found in (tmp_path / "s").rglob("*") if found.is_file()}
    assert rest - {str(found.relative_to(tmp_path / "s")) for found in chunks} == {"zarr.json", "a/zarr.json"}


@pytest.mark.parametrize("case", range(12))
def test_parts_of_any_shape(case: int, tmp_path: Path, sweep_rng: random.Random) -> None:
    axes = sweep_rng.randint(1, 3)
    shape = tuple(sweep_rng.randint(1, 9) for _ in range(axes))
    chunks = tuple(sweep_rng.randint(1, size) for size in shape)
    values = numbers(shape, sweep_rng.choice(DTYPES))
    store = begin(tmp_path / "s", ArrayLayout(shape, chunks, values.dtype))
    cuts = [sorted({0, size, *(sweep_rng.randint(0, size) for _ in range(2))}) for size in shape]
    boxes = [[]]
    for bounds in cuts:
        boxes = [[*box, slice(a, b)] for box in boxes for a, b in itertools.pairwise(bounds)]
    sweep_rng.shuffle(boxes)
    with store.writer("a") as writer:
        for box in boxes:
            assert writer.needs(box)
            writer.add([part.start for part in box], values[tuple(box)])
        assert not writer.missing
    store.seal()
    assert torch.equal(by_store(store), values)
    assert torch.equal(by_zarr(tmp_path / "s", values.dtype), values)


def test_what_is_not_there_reads_as_nan(tmp_path: Path) -> None:
    for dtype in DTYPES:
        path, values = tmp_path / str(dtype), numbers(dtype=dtype)
        with begin(path, ArrayLayout(SHAPE, CHUNKS, dtype)).writer("a") as writer:
            writer.add((0,), values[:3])
        found = by_zarr(path, dtype)
        assert torch.equal(found[:3], values[:3]) and found[3:].isnan().all()


@pytest.mark.parametrize("at_most", [1, 40, 100, 1000, 10**9])
def test_chunks_keep_to_their_size(at_most: int) -> None:
    for shape in ((7, 3, 50), (1, 1000), (1000, 1), (13,)):
        chunks = choose_chunks(shape, 4, at_most)
        assert ArrayLayout(shape, chunks, torch.float32).file_bytes <= max(at_most, 4) + 4
        assert ArrayLayout(shape, chunks, torch.float32).nbytes < 2.1 ** len(shape) * (np.prod(shape) * 8)
    assert choose_chunks((7, 3, 50), 4, 10**9) == (7, 3, 50)
    assert choose_chunks((7, 3, 50), 4, 4 * 50 * 3 * 2) == (2, 3, 50)
    assert choose_chunks((7, 3, 50), 4, 4 * 30) == (1, 1, 25)
    assert [balanced(10, most) for most in (0, 1, 3, 4, 6, 10, 99)] == [1, 1, 3, 4, 5, 10, 10]


def test_layouts_that_are_none() -> None:
    for shape, chunks in (((3, 4), (3,)), ((3,), (4,)), ((3,), (0,)), ((), ())):
        with pytest.raises(StructureError):
            ArrayLayout(shape, chunks, torch.float32)
    with pytest.raises(UnsupportedError, match=r"torch\.int64"):
        ArrayLayout((3,), (3,), torch.int64)


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    complete(Path("~/s"), numbers())
    assert ChunkStore.open("~/s").path == tmp_path / "s" and not (tmp_path / "~").exists()
    with pytest.raises(StructureError, match="a folder of the file system"):
        ChunkStore.open("s3://bucket/s")
    assert not (tmp_path / "s3:").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    values = numbers()
    complete(tmp_path / "s", values)
    with pytest.raises(StoreError, match="Nothing is ever overwritten"):
        begin(tmp_path / "s")
    store = begin(tmp_path / "s", mode="resume")
    assert store.complete and torch.equal(by_store(store), values)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    for mode in ("create", "resume"):
        with pytest.raises(StoreError, match="other files"):
            begin(tmp_path / "full", mode=mode)
    zarr.create_array(store=str(tmp_path / "full" / "x.zarr"), shape=(3,), dtype="float32")
    with pytest.raises(StoreError, match="other files"):
        begin(tmp_path / "full" / "x.zarr")
    with pytest.raises(StoreError, match="holds an array that another program has written"):
        begin(tmp_path / "full" / "x.zarr", mode="resume")
    (tmp_path / "empty").mkdir()
    assert not begin(tmp_path / "empty").complete
    with pytest.raises(StoreError, match="a file at"):
        begin(tmp_path / "full" / "thesis.tex")
    with pytest.raises(StructureError, match="mode="):
        begin(tmp_path / "new", mode="overwrite")


def test_resumes_only_the_same(tmp_path: Path) -> None:
    layout = ArrayLayout(SHAPE, CHUNKS, torch.float32)
    begin(tmp_path / "s")
    identity = {"model": {"w": "1"}, "loss": "l"}
    same: dict[str, Any] = {"kind": "test", "arrays": {"a": layout}, "identity": identity, "facts": {}}
    ChunkStore.create(tmp_path / "s", **same, mode="resume")
    others = [
        ({"kind": "other"}, "'test', not 'other'"),
        ({"identity": {"model": {"w": "2"}, "loss": "l"}}, "model: w '1' there, '2' now"),
        ({"identity": {"model": {"w": "1"}}}, "loss: 'l' there, None now"),
        ({"arrays": {"a": ArrayLayout(SHAPE, (3, 3, 5), torch.float32)}}, "'a' is"),
        ({"arrays": {"a": ArrayLayout(SHAPE, CHUNKS, torch.float64)}}, "float32 .* float64"),
        ({"arrays": {"a": layout, "b": layout}}, "'b' is None there"),
    ]
    for change, found in others:
        with pytest.raises(DataError, match=found):
            ChunkStore.create(tmp_path / "s", **{**same, **change}, mode="resume")


def chunk_files(path: Path) -> list[Path]:
    return sorted(found for found in (path / "a" / "c").rglob("*") if found.is_file())


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty", "gone"])
def test_damage_is_seen_and_mended(damage: str, tmp_path: Path, sweep_rng: random.Random) -> None:
    values = numbers()
    store = begin(tmp_path / "s")
    with store.writer("a") as writer:
        writer.add((0,), values)
    victim = sweep_rng.choice(chunk_files(tmp_path / "s"))
    whole = victim.read_bytes()
    place = sweep_rng.randrange(len(whole))
    flipped = bytes([*whole[:place], whole[place] ^ (1 << sweep_rng.randrange(8)), *whole[place + 1 :]])
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes({"truncated": whole[:place], "flipped bit": flipped, "empty": b""}[damage])
    place = [int(part) for part in victim.relative_to(tmp_path / "s" / "a" / "c").parts]
    with pytest.raises(StoreError, match=re.escape(f"Chunk {place} of 'a'")) as caught:
        by_store(store)
    assert str(victim) in str(caught.value)
    assert store.missing("a", verify=True) == [tuple(place)]
    if damage != "flipped bit":
        with pytest.raises(StoreError, match="1 of 6 chunks of 'a' missing"):
            store.seal()
    store = begin(tmp_path / "s", mode="resume")
    with store.writer("a") as writer:
        assert len(writer.missing) == 1
        writer.add((0,), values)
    store.seal()
    assert victim.read_bytes() == whole and torch.equal(by_store(store), values)


def test_damage_of_a_complete_folder_is_seen_and_mended(tmp_path: Path) -> None:
    values = numbers()
    complete(tmp_path / "s", values)
    victim = chunk_files(tmp_path / "s")[4]
    whole = victim.read_bytes()
    victim.write_bytes(bytes([whole[0] ^ 4, *whole[1:]]))
    store = begin(tmp_path / "s", mode="resume")
    assert not store.complete
    with store.writer("a") as writer:
        assert len(writer.missing) == 1
        writer.add((0,), values)
    store.seal()
    assert victim.read_bytes() == whole and begin(tmp_path / "s", mode="resume").complete


@pytest.mark.parametrize("sealed", [True, False])
def test_chunks_in_each_others_place(sealed: bool, tmp_path: Path) -> None:
    values, path = numbers(), tmp_path / "s"
    store = begin(path)
    with store.writer("a") as writer:
        writer.add((0,), values)
    if sealed:
        store.seal()
    bytes_of = {file: file.read_bytes() for file in chunk_files(path)}
    first, second = chunk_files(path)[0], chunk_files(path)[2]
    first.write_bytes(bytes_of[second])
    second.write_bytes(bytes_of[first])
    found = by_zarr(path, values.dtype)
    assert not torch.equal(found, values) and not found.isnan().any(), "to zarr both are whole"
    for again in (store, ChunkStore.open(path)):
        with pytest.raises(StoreError, match="the bytes of another chunk") as caught:
            by_store(again)
        assert str(first) in str(caught.value)
        assert again.missing("a", verify=True) == [(0, 0, 0), (1, 0, 0)] and not again.missing("a")
    if not sealed:
        with pytest.raises(StoreError, match="2 of 6 chunks of 'a' missing"):
            store.seal()
    store = begin(path, mode="resume")
    assert not store.complete
    with store.writer("a") as writer:
        assert len(writer.missing) == 2
        writer.add((0,), values)
    store.seal()
    assert {file: file.read_bytes() for file in chunk_files(path)} == bytes_of and not list(path.rglob(".*"))
    assert begin(path, mode="resume").complete and torch.equal(by_store(ChunkStore.open(path)), values)


def test_records_that_a_killed_writer_left(tmp_path: Path) -> None:
    values, path = numbers(), tmp_path / "s"
    store = begin(path)
    with store.writer("a") as writer:
        writer.add((0,), values[:3])
    records = path / "a" / ".0.record"
    whole = records.read_text()
    for text, left in ((whole + "\n1/0/0 0123", 4), (whole[:-3], 5), ("", 6), (whole.replace("0/1/0", "0/0/0"), 5)):
        records.write_text(text)
        assert len(begin(path, mode="resume").missing("a", verify=True)) == left
    records.write_text(whole + "\n1/0/0 0123")
    with begin(path, mode="resume").writer("a") as writer:
        writer.add((0,), values)
    store.seal()
    (path / "a" / ".3.record").write_text("left between the seal and the end")
    assert begin(path, mode="resume").complete and not list(path.rglob(".*"))


def test_headers_with_another_letter(tmp_path: Path, sweep_rng: random.Random) -> None:
    values, path = numbers(), tmp_path / "s"
    complete(path, values)
    root, array = path / "zarr.json", path / "a" / "zarr.json"
    text = root.read_text()
    changes = [('"of": "tests"', '"of": "texts"'), ('"w": "1"', '"w": "2"'), ('"complete": true', '"complete": false')]
    changes += [('"kind": "test"', '"kind": "text"'), ('"float32"', '"float16"')]
    changes += [(f'"{name}": "', f'"{name}": "0') for name in ("hash", "a")]
    for old, new in changes:
        assert text.count(old) == 1
        root.write_text(text.replace(old, new))
        for ask in (lambda: ChunkStore.open(path), lambda: begin(path, mode="resume")):
            with pytest.raises(StoreError, match="its hash is wrong") as caught:
                ask()
            assert str(root) in str(caught.value)
    root.write_text(text)
    whole = array.read_text()
    for old, new in (("7", "6"), ("7", "8"), ("3", "2")):
        place = whole.index(old, whole.index('"shape"'))
        array.write_text(whole[:place] + new + whole[place + 1 :])
        for ask in (lambda: ChunkStore.open(path), lambda: begin(path, mode="resume")):
            with pytest.raises(StoreError, match="was written") as caught:
                ask()
            assert str(array) in str(caught.value)
    array.write_text(whole)
    begin_of_entry = text.index('"hesse"')
    for _ in range(60):
        place = sweep_rng.randrange(begin_of_entry, len(text))
        letter = sweep_rng.choice("0123456789abcdef")
        root.write_text(text[:place] + letter + text[place + 1 :])
        if text[place] != letter and not text[place].isspace():
            with pytest.raises(StoreError):
                ChunkStore.open(path)
    root.write_text(text)
    assert torch.equal(by_store(ChunkStore.open(path)), values)
    group: Any = zarr.open(str(path), mode="r+")
    group.attrs["note"] = "of the user's"
    assert torch.equal(by_store(begin(path, mode="resume")), values)


def test_an_array_that_lacks_numbers(tmp_path: Path) -> None:
    store = begin(tmp_path / "s")
    with pytest.raises(StructureError, match="lacks 5 numbers, 1 chunks"), store.writer("a") as writer:
        writer.add((0, 0), numbers()[:, :1])
        writer.add((0, 1), numbers()[:4, 1:])
        writer.add((4, 1), numbers()[4:6, 1:])
    with pytest.raises(StoreError, match="marked as complete"):
        store.seal()
    with store.writer("a") as writer:
        for start, part in (((6,), numbers()[:2]), ((0, 0, 1), numbers()), ((0,), numbers().double()), ((0,), numbers()[0])):
            with pytest.raises(StructureError, match="Parts of"):
                writer.add(start, part)


def test_two_writers_in_one_process(tmp_path: Path) -> None:
    store = begin(tmp_path / "s")
    with store.writer("a"):
        with pytest.raises(StoreError, match="One writer at a time"), store.writer("a"):
            pass
        found: list[BaseException] = []

        def other() -> None:
            try:
                with ChunkStore.open(tmp_path / "s").writer("a"):
                    pass
            except StoreError as error:
                found.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(found) == 1
        with store.writer("a", rank=1):
            pass
    with store.writer("a"):
        pass


def _hold(path: str, pipe: Any, children: bool) -> None:
    with ChunkStore.open(path).writer("a"):
        worker = os.fork() if children else 1
        if worker == 0:  # a worker of a data loader, which outlives its parent
            select.select([pipe], [], [], 20)
            os._exit(0)
        pipe.send("holds")
        threading.Event().wait()


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    store = begin(tmp_path / "s")
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(str(tmp_path / "s"), theirs, True))
    process.start()
    try:
        assert ours.recv() == "holds"
        with pytest.raises(StoreError, match="another process is writing"), store.writer("a"):
            pass
    finally:
        process.kill()
        process.join()
    assert (tmp_path / "s" / ".a.0.lock").exists()
    with store.writer("a") as writer:
        writer.add((0,), numbers())
    ours.send("end")
    store.seal()
    assert not list((tmp_path / "s").rglob(".*"))


class FullDisk:
    """The module `os`, whose disk takes so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, file: int, data: Any) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(len(data), self.room)
        self.room -= taken
        return os.write(file, data[:taken])


@pytest.mark.parametrize("room", [0, 1, 16, 139, 140, 300, 839])
def test_a_full_disk(room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each = 124 + len("\n0/0/0 01234567\n")  # a chunk, and its record
    store, values = begin(tmp_path / "s"), numbers()
    with monkeypatch.context() as patched:
        patched.setattr(chunk_store_files, "os", FullDisk(room))
        with pytest.raises(StoreError, match="No space left") as caught, store.writer("a") as writer:
            writer.add((0,), values)
    assert isinstance(caught.value, OSError) and isinstance(caught.value.__cause__, OSError)
    assert len(chunk_files(tmp_path / "s")) == room // each
    assert not list((tmp_path / "s").rglob("*.partial"))
    store = begin(tmp_path / "s", mode="resume")
    with store.writer("a") as writer:
        assert len(writer.missing) == 6 - room // each
        writer.add((0,), values)
    store.seal()
    assert torch.equal(by_store(store), values)


def _limited(path: str, pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        with ChunkStore.open(path).writer("a") as writer:
            writer.add((0,), numbers())
    except StoreError as error:
        pipe.send(str(error))


def test_the_system_refuses_to_write(tmp_path: Path) -> None:
    store = begin(tmp_path / "s")
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_limited, args=(str(tmp_path / "s"), theirs))
    process.start()
    process.join(60)
    assert ours.poll() and "File too large" in ours.recv()
    assert not chunk_files(tmp_path / "s") and not list((tmp_path / "s").rglob("*.partial"))
    with store.writer("a") as writer:
        writer.add((0,), numbers())


def test_a_full_disk_at_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (0, 400, 700):
        path = tmp_path / str(room)
        with monkeypatch.context() as patched:
            patched.setattr(chunk_store_files, "os", FullDisk(room))
            with pytest.raises(StoreError, match="No space left"):
                begin(path)
        with pytest.raises(StoreError, match=r"no 'zarr\.json'"):
            ChunkStore.open(path)
        assert not begin(path, mode="resume").complete


def test_too_little_room_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = chunk_store_files.free_disk(tmp_path / "not" / "there")
    with pytest.raises(StoreError, match=r"needs .* on the disk.*\n.*free"):
        require_disk(tmp_path / "not" / "there", 10**6, free // 10**5, "it")
    require_disk(tmp_path, 1, free // 2, "it")
    monkeypatch.setattr(chunk_store_files, "free_disk", lambda path: 4096 * 5)
    with pytest.raises(StoreError, match=r"24576 bytes"):
        begin(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_folders_of_others(tmp_path: Path) -> None:
    def refuse(path: Any, found: str, error: type[Exception] = StoreError) -> None:
        with pytest.raises(error, match=found) as caught:
            ChunkStore.open(path)
        assert caught.value.remedy  # pyright: ignore

    refuse(tmp_path / "none", "no folder")
    (tmp_path / "file").write_text("x")
    refuse(tmp_path / "file", "is a file")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", r"no 'zarr\.json'")
    zarr.create_group(str(tmp_path / "g"))
    refuse(tmp_path / "g", "holds a group that another program has written")
    zarr.create_group(str(tmp_path / "old"), zarr_format=2)
    refuse(tmp_path / "old", r"no 'zarr\.json'")
    store = complete(tmp_path / "s", numbers())
    refuse(tmp_path / "s" / "a", "holds an array that another program has written")
    for wrong in (5, None, "a\0b"):
        refuse(wrong, "found", StructureError)
    shutil.copytree(tmp_path / "s", tmp_path / "newer")
    header = tmp_path / "newer" / "zarr.json"
    text = header.read_text()
    header.write_text(text.replace('"format": 1', '"format": 7'))
    refuse(tmp_path / "newer", "format 7")
    for damaged in (text[:-20], "[]", "{}", text.replace('"format": 1', '"format": "1"'), text.replace('"facts"', '"fact"')):
        header.write_text(damaged)
        refuse(tmp_path / "newer", "cannot be read|holds")
    entry = tmp_path / "s" / "a" / "zarr.json"
    for old, new in (('"little"', '"big"'), ('"float32"', '"int64"'), ('"shape"', '"sides"')):
        whole = entry.read_text()
        entry.write_text(whole.replace(old, new))
        refuse(tmp_path / "s", "another description")
        entry.write_text(whole)
    assert store.kind == "test" and store.facts == {"of": "tests"}


class NoAccess:
    """The module `os`, which opens nothing for writing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied")
        return os.open(path, flags, mode)


def test_folders_that_nobody_may_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = begin(tmp_path / "s")
    monkeypatch.setattr(chunk_store_files, "os", NoAccess())
    with pytest.raises(StoreError, match="Permission denied"), store.writer("a"):
        pass
    with pytest.raises(StoreError, match="Permission denied"):
        begin(tmp_path / "other")
    with pytest.raises(StoreError, match="Permission denied"):
        chunk_store_files.write_json(tmp_path / "s" / "b.json", {})


def test_names_that_are_too_long(tmp_path: Path) -> None:
    for ask in (begin, ChunkStore.open):
        with pytest.raises(StoreError, match="File name too long") as caught:
            ask(tmp_path / ("x" * 300))
        assert caught.value.remedy == "pass another path"


def test_folders_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="Not a directory"):
        begin(tmp_path / "file" / "s")


def test_checksums_need_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chunk_store_files.checksum(b"123456789") == (0xE3069283).to_bytes(4, "little")  # the check value of CRC-32C
    monkeypatch.setitem(__import__("sys").modules, "google_crc32c", None)
    with pytest.raises(MissingExtraError, match=r"hesse\[storage\]"):
        chunk_store_files.checksum(b"1")
    with pytest.raises(MissingExtraError, match=r"hesse\[storage\]"):
        begin(tmp_path / "s")
    assert not (tmp_path / "s").exists()
