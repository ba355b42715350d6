"""The reader: lazy rows and columns, products, laws, incomplete and damaged folders."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.core.chunk_store import ChunkStore
from hesse.core.chunk_store_seal import with_hash
from hesse.core.errors import DeviceError, LeafError, MemoryBudgetError, StoreError, StructureError
from hesse.operators.base import LinearOperator
from hesse.operators.projections import random_projection
from hesse.parameters.storing.matrix import StoredMatrix, open_zarr
from hesse.testing import operator_laws, parametrize_laws

from .small import batches, model, plain_rows, stop_after

CHUNKS = [140, 700, 10**6]


def stored(path: Path, *, outputs: bool = False, chunk_bytes: int = 140, dtype: torch.dtype = torch.float64) -> StoredMatrix:
    J = hesse.parameter_jacobian(model(dtype), None if outputs else nn.CrossEntropyLoss(), batches(dtype=dtype))
    return J.to_zarr(path, chunk_bytes=chunk_bytes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored")
    J, outputs = (hesse.parameter_jacobian(model(), loss, batches((3, 4, 2))) for loss in (nn.CrossEntropyLoss(), None))
    J.to_zarr(path / "rows", chunk_bytes=300)
    outputs.to_zarr(path / "outputs", chunk_bytes=300)
    J.to_zarr(path / "projected", projection=random_projection(J, 5, seed=0), chunk_bytes=100)
    outputs.gram_to_zarr(path / "gram", chunk_bytes=300)
    J.gram_to_zarr(path / "mixed", outputs, chunk_bytes=300)
    return path


KINDS = ("rows", "outputs", "projected", "gram", "mixed")
_folder: list[Path] = []


@pytest.fixture(autouse=True)
def _known(folder: Path) -> None:
    _folder[:] = [folder]


@parametrize_laws([law for kind in KINDS for law in operator_laws(lambda kind=kind: open_zarr(_folder[0] / kind), name=kind)])
def test_laws(law: Any) -> None:
    law()


@pytest.mark.parametrize(("outputs", "chunk_bytes"), [(False, 140), (True, 700), (True, 10**6)])
def test_rows_and_columns(outputs: bool, chunk_bytes: int, tmp_path: Path, sweep_rng: random.Random) -> None:
    R = stored(tmp_path / "r", outputs=outputs, chunk_bytes=chunk_bytes)
    rows = plain_rows(model(), None if outputs else nn.CrossEntropyLoss(), batches())
    mask = torch.tensor([sweep_rng.random() < 0.4 for _ in range(15)]).index_fill_(0, torch.tensor([7]), True)
    numbers = [sweep_rng.randrange(-15, 15) for _ in range(6)]
    for samples in (slice(3, 9), slice(None), slice(None, None, 4), numbers, torch.tensor(numbers), mask, 11, -1):
        assert torch.allclose(R[samples], rows[samples], rtol=1e-12, atol=1e-14)
        starts = [0]
        for name, parameter in model().named_parameters():
            part = rows[..., starts[-1] : starts[-1] + parameter.numel()].unflatten(-1, parameter.shape)
            starts.append(starts[-1] + parameter.numel())
            assert torch.allclose(R.leaf(name, samples), part[samples], rtol=1e-12, atol=1e-14)
    assert torch.equal(R.leaf("0.bias"), R[:][..., 35:42]) and len(R) == 15
    assert torch.equal(R.samples, torch.arange(15)) and R.nbytes == rows.numel() * 8
    for one in (np.int64(4), np.array(4), torch.tensor(4), torch.tensor(-3, dtype=torch.int32)):
        assert torch.equal(R[one], R[int(one)]) and torch.equal(R.leaf("0.bias", one), R.leaf("0.bias", int(one)))
    for several in ([4], np.array([4]), torch.tensor([4]), range(4, 5)):
        assert torch.equal(R[several], R[4:5])
    assert torch.equal(R[...], R[:])
    wrongs: list[Any] = [15, -16, [3, 99], torch.ones(3, dtype=torch.bool), (2, 3), (slice(2, 4), 1), True, None]
    wrongs += [torch.tensor([[1]]), [[1]], np.ones((2, 3), int), slice(None, None, -1), [1.5], 1.0, "a"]
    wrongs += [["a"], [None], torch.tensor(True), np.bool_(True), [1, [2]], [10**30], 10**30]
    wrongs += [torch.zeros((0, 3), dtype=torch.bool), slice("a"), slice(1.5), slice(None, None, 0)]
    for wrong in wrongs:
        with pytest.raises(StructureError) as caught:
            R[wrong]
        assert not re.search("tensors used as|step must|index 99|dimension", str(caught.value))
    none: list[Any] = [slice(0, 0), slice(15, 20), slice(4, 2), [], torch.tensor([]), np.array([]), range(0)]
    none += [torch.tensor([], dtype=torch.int32), torch.zeros(15, dtype=torch.bool), np.zeros(15, bool)]
    for empty in none:
        assert R[empty].shape == (0, *rows.shape[1:]) and R[empty].dtype == rows.dtype
        assert R.leaf("0.bias", empty).shape == (0, *rows.shape[1:-1], 7)
    with pytest.raises(StructureError, match="no parameter 'bias'"):
        R.leaf("bias")


@pytest.mark.parametrize("kind", KINDS)
def test_iterating_reads_every_chunk_once(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    R = open_zarr(folder / kind)
    rows = R[:]
    seen: list[Any] = []
    read = ChunkStore.read
    monkeypatch.setattr(ChunkStore, "read", lambda self, name, index: (seen.append((name, index)), read(self, name, index))[1])
    found = list(R)
    assert len(found) == len(R) and all(torch.equal(row, whole) for row, whole in zip(found, rows, strict=True))
    assert len(seen) == len(set(seen)) == sum(layout.count for layout in R.bands.store.arrays.values())
    found[0].zero_()
    assert torch.equal(found[1], rows[1]) and found[0].untyped_storage().nbytes() == rows[0].nbytes
    assert all(torch.equal(a, b) for a, b in zip(reversed(R), rows.flip(0), strict=True))


def test_iterating_within_a_budget(tmp_path: Path) -> None:
    R = stored(tmp_path / "r", chunk_bytes=10**6)
    rows = R[:]
    with hesse.memory(2 * 63 * 8 * 4):
        assert torch.equal(torch.stack(list(R)), rows)
    with hesse.memory(63 * 8), pytest.raises(MemoryBudgetError):
        next(iter(R))
    with pytest.raises(StructureError, match=r"torch\.equal"):
        assert rows[0] in R


@pytest.mark.parametrize("kind", KINDS)
def test_as_an_array(kind: str, folder: Path) -> None:
    R = open_zarr(folder / kind)
    assert np.array_equal(np.asarray(R), R[:].numpy()) and np.asarray(R).dtype == np.float64
    assert np.array_equal(np.array(R, dtype=np.float32), R[:].float().numpy())
    twice: Any = np.float64(2) * R  # pyright: ignore[reportOperatorIssue]
    assert isinstance(twice, LinearOperator) and torch.equal(hesse.dense(twice), 2 * hesse.dense(R))
    with hesse.memory(R.nbytes - 1), pytest.raises(MemoryBudgetError):
        np.asarray(R)
    with pytest.raises(ValueError, match="copy"):
        R.__array__(copy=False)


def test_as_an_array_of_a_dtype_that_numpy_has_not(tmp_path: Path) -> None:
    R = stored(tmp_path / "r", dtype=torch.bfloat16)
    with pytest.raises(LeafError, match="bfloat16"):
        np.asarray(R)
    assert np.array_equal(np.asarray(R, dtype=np.float32), R[:].float().numpy())


@pytest.mark.parametrize("device", ["nonsense", "", "meta", 1.5, "cuda:99"])
def test_devices_that_are_none(device: Any, folder: Path) -> None:
    with pytest.raises(DeviceError, match="remedy"):
        open_zarr(folder / "rows", device=device)


def test_only_the_wanted_chunks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    R = stored(tmp_path / "r", chunk_bytes=16 * 8)
    assert R.bands.layout.chunks == (1, 16)
    seen: list[tuple[int, ...]] = []
    read = ChunkStore.read
    monkeypatch.setattr(ChunkStore, "read", lambda self, name, index: (seen.append(index), read(self, name, index))[1])
    R[[4, 2, 4]]
    assert sorted(seen) == [(row, column) for row in (2, 4) for column in range(4)]
    seen.clear()
    R.leaf("0.bias", slice(5, 7))  # columns 35 to 42
    assert sorted(seen) == [(5, 2), (6, 2)]
    seen.clear()
    R.gram()
    assert len(seen) == len(set(seen)) == 15 * 4
    seen.clear()
    R @ R.in_space.zeros(3)
    assert len(seen) == 15 * 4


PRODUCTS = list(itertools.product([False, True], [torch.float64, torch.bfloat16], CHUNKS))


def test_products(tmp_path: Path, sweep: Callable[..., list[tuple[bool, torch.dtype, int]]]) -> None:
    for number, case in enumerate(sweep(PRODUCTS, 4)):
        check_products(*case, tmp_path / str(number))


def check_products(outputs: bool, dtype: torch.dtype, chunk_bytes: int, tmp_path: Path) -> None:
    R = stored(tmp_path / "r", outputs=outputs, chunk_bytes=chunk_bytes, dtype=dtype)
    rows = R[:].double()
    flat = rows.flatten(0, -2)
    close = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 2e-2}
    generator = torch.Generator().manual_seed(2)
    V, U = R.in_space.normal(4, generator=generator), R.out_space.normal(2, generator=generator)
    right, left = R.in_space.ravel(V, 1).double(), R.out_space.ravel(U, 1).double()

    def same(found: Tensor, wanted: Tensor) -> None:
        assert found.dtype == dtype and torch.allclose(found.double(), wanted, **close)

    same(R.out_space.ravel(R @ V, 1), right @ flat.mT)
    same(R.in_space.ravel(R.T @ U, 1), left @ flat)
    same(R.gram().reshape(len(flat), len(flat)), flat @ flat.mT)
    same(hesse.dense(R), flat)
    assert torch.allclose(hesse.diagonal(R.T @ R).double(), flat.square().sum(0), **close)
    with hesse.memory(1), pytest.raises(MemoryBudgetError) as small:
        R.gram()
    with hesse.memory(small.value.least):
        same(R.gram().reshape(len(flat), len(flat)), flat @ flat.mT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("chunk_bytes", [140, 10**6])
def test_norms(dtype: torch.dtype, outputs: bool, chunk_bytes: int, tmp_path: Path) -> None:
    R = stored(tmp_path / "r", outputs=outputs, chunk_bytes=chunk_bytes, dtype=dtype)
    rows, close = R[:].double(), {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-12}
    found = R.norms()
    assert found.dtype == dtype and torch.allclose(found.double(), rows.norm(dim=-1), **close)
    parts = dict(zip(R.in_space.names, rows.split(R.in_space.sizes, -1), strict=True))
    by_parameter, by_layer = R.norms("parameter"), R.norms("layer")
    assert list(by_parameter) == ["0.weight", "0.bias", "2.weight"] and list(by_layer) == ["0", "2"]
    for name, part in parts.items():
        assert torch.allclose(by_parameter[name].double(), part.norm(dim=-1), **close)
    layer = torch.cat([parts["0.weight"], parts["0.bias"]], -1)
    assert torch.allclose(by_layer["0"].double(), layer.norm(dim=-1), **close)


def test_norms_that_are_none(folder: Path) -> None:
    R = open_zarr(folder / "projected")
    assert torch.allclose(R.norms(), R[:].norm(dim=-1))
    for name, per in (("projected", "layer"), ("rows", "layers"), ("gram", None)):
        with pytest.raises(StructureError, match="norms"):
            open_zarr(folder / name).norms(per)  # pyright: ignore


def test_long_rows_in_float32(tmp_path: Path) -> None:
    wide = nn.Linear(200_000, 2, bias=False)
    J = hesse.parameter_jacobian(wide, nn.CrossEntropyLoss(), [(torch.rand(3, 200_000), torch.tensor([0, 1, 1]))])
    R = J.to_zarr(tmp_path / "r")
    rows = R[:].double()
    wanted, size = rows @ rows.mT, rows.norm() ** 2
    for found in (R.gram(), torch.stack([R @ R.in_space.unravel(row) for row in R[:]])):
        assert (found.double() - wanted).abs().max() < 1e-6 * size


def test_questions_of_the_operator(folder: Path) -> None:
    R = open_zarr(folder / "rows")
    b = R.in_space.normal()
    x = hesse.solve(R.T @ R + 0.3 * hesse.identity(R.in_space), b)
    rows = R[:]
    wanted = torch.linalg.solve(rows.mT @ rows + 0.3 * torch.eye(63).double(), R.in_space.ravel(b))
    assert torch.allclose(R.in_space.ravel(x), wanted, rtol=1e-8, atol=1e-10)
    K = open_zarr(folder / "gram")
    wanted = torch.linalg.eigvalsh(hesse.dense(K))[-2:].flip(0)
    assert torch.allclose(hesse.eigsh(K, 2).values.sort(descending=True).values, wanted, rtol=1e-6)
    with pytest.raises(StructureError, match="already"):
        K.gram()
    with pytest.raises(StructureError, match="a matrix of gram"):
        K.leaf("0.weight")


def test_budgets(folder: Path) -> None:
    R = open_zarr(folder / "rows")
    with hesse.memory(63 * 8 * 4):
        assert R[:4].shape == (4, 63)
        with pytest.raises(MemoryBudgetError, match="9 rows of 63"):
            R[:]
        with pytest.raises(MemoryBudgetError):
            hesse.dense(R)
        assert R.leaf("0.bias").shape == (9, 7)
        assert (R @ R.in_space.normal()).shape == (9,)


def test_incomplete_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    J = hesse.parameter_jacobian(model(), nn.CrossEntropyLoss(), batches())
    rows = plain_rows(model(), nn.CrossEntropyLoss(), batches())
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(patched, 9)
        J.to_zarr(tmp_path / "r", chunk_bytes=140)  # 4 chunks a row
    with pytest.raises(StoreError, match="51 chunks missing"):
        open_zarr(tmp_path / "r")
    R = open_zarr(tmp_path / "r", partial=True)
    assert torch.equal(R.samples, torch.arange(2)) and torch.allclose(R[:], rows[:2]) and R.shape == (2, 63)
    (tmp_path / "r" / "rows" / "c" / "0" / "2").unlink()
    R = open_zarr(tmp_path / "r", partial=True)
    assert R.samples.tolist() == [1] and torch.allclose(R[:], rows[1:2]) and "1 of 15" in repr(R)
    assert hesse.check_operator(R).ok
    with pytest.raises(StructureError):
        R[1]
    (tmp_path / "r" / "rows" / "c" / "1" / "0").unlink()
    with pytest.raises(StoreError, match="no complete row"):
        open_zarr(tmp_path / "r", partial=True)


def test_a_partial_kernel_is_not_symmetric(tmp_path: Path) -> None:
    J = hesse.parameter_jacobian(model(), nn.CrossEntropyLoss(), batches((4, 4, 4)), memory=20_000)
    whole = J.gram_to_zarr(tmp_path / "k", chunk_bytes=12 * 8)
    max((tmp_path / "k" / "gram" / "c").iterdir(), key=lambda path: int(path.name)).joinpath("0").unlink()
    K = open_zarr(tmp_path / "k", partial=True)
    assert whole.tags and not K.tags and 0 < len(K) < 12
    rows = plain_rows(model(), nn.CrossEntropyLoss(), batches((4, 4, 4)))
    assert torch.allclose(K[:], (rows @ rows.mT)[K.samples], rtol=1e-10)


def test_damaged_chunks(tmp_path: Path, sweep_rng: random.Random) -> None:
    R = stored(tmp_path / "r")
    victim = tmp_path / "r" / "rows" / "c" / "6" / "1"
    data = bytearray(victim.read_bytes())
    data[sweep_rng.randrange(len(data))] ^= 1 << sweep_rng.randrange(8)
    victim.write_bytes(bytes(data))
    assert R[:6].shape == (6, 63)
    for read in (lambda: R[6], lambda: R @ R.in_space.zeros(), lambda: hesse.dense(R), R.gram):
        with pytest.raises(StoreError, match=r"Chunk \[6, 1\] of 'rows' .*\n.*checksum"):
            read()
    assert "rows, 15 by 63" in repr(R)


@pytest.mark.parametrize("header", ["kind", "columns", "mass"])
def test_headers_that_lack_something(header: str, tmp_path: Path) -> None:
    stored(tmp_path / "r")
    path = tmp_path / "r" / "zarr.json"
    text = path.read_text()
    changed = text.replace('"kind": "rows"', '"kind": "other"') if header == "kind" else text.replace(f'"{header}"', '"else"')
    path.write_text(changed)
    with pytest.raises(StoreError, match="its hash is wrong"):
        open_zarr(tmp_path / "r")
    entry = json.loads(changed)
    entry["attributes"]["hesse"] = with_hash(entry["attributes"]["hesse"])
    path.write_text(json.dumps(entry))
    with pytest.raises(StoreError, match="open_zarr opens rows"):
        open_zarr(tmp_path / "r")


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no folder '.*none'\n.*remedy"):
        open_zarr(tmp_path / "none")


def test_parts_one_below_the_other(tmp_path: Path) -> None:
    from hesse.parameters.storing.rows import fill_rows, rows_part

    data = batches((4, 3, 6))
    shards = [hesse.parameter_jacobian(model(), nn.CrossEntropyLoss(), part) for part in (data[:2], data[2:])]
    parts = [rows_part(J, chunk_bytes=700) for J in shards]
    arrays = {f"rows.{rank}": part.layout for rank, part in enumerate(parts)}
    identity = {f"rank {rank}": part.identity for rank, part in enumerate(parts)}
    store = ChunkStore.create(tmp_path / "r", "rows", arrays, identity, parts[0].facts)
    fill_rows(shards[1], ChunkStore.open(tmp_path / "r"), "rows.1", rank=1)
    rows = plain_rows(model(), nn.CrossEntropyLoss(), data)
    some = open_zarr(tmp_path / "r", partial=True)
    assert some.samples.tolist() == list(range(7, 13)) and torch.allclose(some[:], rows[7:])
    with pytest.raises(StoreError, match=r"chunks of 'rows\.0' missing"):
        store.seal()
    fill_rows(shards[0], store, "rows.0", rank=0)
    store.seal()
    R = open_zarr(tmp_path / "r")
    assert torch.allclose(R[:], rows, rtol=1e-12, atol=1e-14) and torch.allclose(R[[8, 2]], rows[[8, 2]])
    assert hesse.check_operator(R).ok
