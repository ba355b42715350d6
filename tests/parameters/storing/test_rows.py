"""Rows on disk equal plain loops; a resumed run writes the rest, and only with what it was begun with."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zarr
from torch import Tensor, nn

import hesse
from hesse.core import chunk_store_files
from hesse.core.chunk_store import ChunkStore
from hesse.core.errors import DataError, MemoryBudgetError, StoreError, StructureError, UnsupportedError
from hesse.operators.projections import random_projection
from hesse.parameters.base import JacobianBySample
from hesse.parameters.storing.matrix import open_zarr
from tests.core.test_chunk_store import FullDisk

from .small import SIZES, batches, files, model, plain_rows, stop_after, there

CHUNKS = [140, 600, 1100, 10**6]
LOSSES: dict[str, Callable[[], Any]] = {
    "mean": nn.CrossEntropyLoss,
    "sum": lambda: nn.CrossEntropyLoss(reduction="sum"),
    "outputs": lambda: None,
}


def test_rows_equal_plain_loops(tmp_path: Path, untouched: None, sweep: Callable[..., list[tuple[str, int]]]) -> None:
    for number, (loss, chunk_bytes) in enumerate(sweep(list(itertools.product(LOSSES, CHUNKS)), 4)):
        check_rows(loss, chunk_bytes, tmp_path / str(number))


def check_rows(loss: str, chunk_bytes: int, tmp_path: Path) -> None:
    module, data, f = model(), batches(), LOSSES[loss]()
    J = hesse.parameter_jacobian(module, f, data)
    layout = J.zarr_layout(chunk_bytes=chunk_bytes)
    R = J.to_zarr(tmp_path / "r", chunk_bytes=chunk_bytes)
    wanted = plain_rows(module, f, data)
    assert R.kind == "rows" and R.out_space == J.out_space and R.in_space == J.in_space and R.mass == J.mass
    assert R[:].shape == wanted.shape and torch.allclose(R[:], wanted, rtol=1e-12, atol=1e-14)
    group: Any = zarr.open(str(tmp_path / "r"), mode="r")
    assert torch.equal(torch.from_numpy(group["rows"][:]), R[:])
    chunks = [found for found in (tmp_path / "r" / "rows" / "c").rglob("*") if found.is_file()]
    assert sum(found.stat().st_size for found in chunks) == layout.nbytes
    assert str(layout).startswith(f"[{' x '.join(map(str, wanted.shape))}] float64 in {len(chunks)} chunks")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_rows_of_dense_in_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    data = batches(dtype=dtype)
    J = hesse.parameter_jacobian(model(dtype), nn.CrossEntropyLoss(), data)
    R = J.to_zarr(tmp_path / "r", chunk_bytes=300)
    wanted = torch.cat([hesse.parameter_jacobian(model(dtype), nn.CrossEntropyLoss(), b).dense() for b in data])
    assert R.dtype == dtype and torch.allclose(R[:].double(), wanted.double(), rtol=1e-5 if dtype != torch.bfloat16 else 2e-2)


def test_one_batch_and_a_loader(tmp_path: Path) -> None:
    module, ((x, y),) = model(), batches((15,))
    wanted = plain_rows(module, nn.CrossEntropyLoss(), [(x, y)])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    for name, data in (("batch", (x, y)), ("loader", loader)):
        R = hesse.parameter_jacobian(module, nn.CrossEntropyLoss(), data).to_zarr(tmp_path / name, chunk_bytes=900)
        assert torch.allclose(R[:], wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("records", ["kept", "streamed"])
@pytest.mark.parametrize("budget", [20_000, 10**9])
def test_budgets_and_records(records: Any, budget: int, tmp_path: Path) -> None:
    module, data = model(), batches((7, 3, 7))
    J = hesse.parameter_jacobian(module, nn.MSELoss(), [(x, torch.ones(len(x), 3).double()) for x, _ in data],
                                 records=records, memory=budget)  # fmt: skip
    R = J.to_zarr(tmp_path / "r", chunk_bytes=1100)
    wanted = plain_rows(module, nn.MSELoss(), [(x, torch.ones(len(x), 3).double()) for x, _ in data])
    assert R.mass == J.mass == 3 * 17  # rows are of the sums over outputs, whose mean the loss is
    assert torch.allclose(R[:], 3 * wanted, rtol=1e-12, atol=1e-14)


def test_unused_frozen_tied_and_nested_parameters(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.ones(2, 2).double())
            self.w, self.frozen = nn.Linear(5, 5).double(), nn.Parameter(torch.ones(5).double(), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.w(self.w(x).sin() * self.frozen)[:, :3]

    module, data = Tied(), batches()
    R = hesse.parameter_jacobian(module, nn.CrossEntropyLoss(), data).to_zarr(tmp_path / "r", chunk_bytes=200)
    assert torch.allclose(R[:], plain_rows(module, nn.CrossEntropyLoss(), data), rtol=1e-12, atol=1e-14)
    assert not R.leaf("unused").any()

    def f(params: Any, x: Tensor) -> Tensor:
        return (x @ params["a"][0]).tanh() @ params["b"]

    generator = torch.Generator().manual_seed(3)
    params = {"b": torch.randn(4, 3, generator=generator).double(), "a": [torch.randn(5, 4, generator=generator).double()]}
    J = hesse.parameter_jacobian((f, params), nn.CrossEntropyLoss(), data)
    R = J.to_zarr(tmp_path / "nested")
    assert list(R.in_space.names) == ["b", "a.0"]
    product = R.T @ torch.ones(sum(SIZES)).double()
    assert torch.allclose(product["a"][0], J.weighted_sum(torch.ones(sum(SIZES)).double())["a"][0])


@pytest.mark.parametrize("kind", ["gaussian", "rademacher", "fjlt"])
def test_projected_rows(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = model(), batches()
    J = hesse.parameter_jacobian(module, nn.CrossEntropyLoss(), data)
    P = random_projection(J, 9, kind=kind, seed=5)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(patched, 3)
        J.to_zarr(tmp_path / "p", projection=P, chunk_bytes=100)
    assert there(tmp_path / "p") == 3
    R = J.to_zarr(tmp_path / "p", projection=P, mode="resume", chunk_bytes=100)
    wanted = plain_rows(module, nn.CrossEntropyLoss(), data) @ hesse.dense(P).mT
    assert R.kind == "projected rows" and torch.allclose(R[:], wanted, rtol=1e-10, atol=1e-12)
    other = random_projection(J, 9, kind=kind, seed=6)
    with pytest.raises(DataError, match="not the same settings: projection"):
        J.to_zarr(tmp_path / "p", projection=other, mode="resume", chunk_bytes=100)
    with pytest.raises(DataError, match="'projected rows', not 'rows'"):
        J.to_zarr(tmp_path / "p", mode="resume", chunk_bytes=100)


def counting(module: nn.Module) -> list[int]:
    """The samples of every forward pass of a module."""
    seen: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


def test_resumed_runs_compute_only_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = batches((4, 4, 4, 4, 2))
    J = hesse.parameter_jacobian(model(), nn.CrossEntropyLoss(), data, memory=10**8)
    J.to_zarr(tmp_path / "whole", chunk_bytes=4 * 63 * 8)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(patched, 3)
        J.to_zarr(tmp_path / "r", chunk_bytes=4 * 63 * 8)
    module = model()
    J = hesse.parameter_jacobian(module, nn.CrossEntropyLoss(), data, memory=10**8)
    J.norms()  # every shape was checked
    seen = counting(module)
    with pytest.raises(StoreError, match='mode="resume"'):
        J.to_zarr(tmp_path / "r", chunk_bytes=4 * 63 * 8)
    J.to_zarr(tmp_path / "r", mode="resume", chunk_bytes=4 * 63 * 8)
    assert seen == [4, 4, 2], "one batch is compared, two are missing"
    assert files(tmp_path / "r") == files(tmp_path / "whole")
    J.to_zarr(tmp_path / "r", mode="resume", chunk_bytes=4 * 63 * 8)
    assert seen == [4, 4, 2], "nothing is left to do"


def test_a_removed_chunk_is_written_again(tmp_path: Path, sweep_rng: random.Random) -> None:
    J = hesse.parameter_jacobian(model(), None, batches(), memory=10**8)
    J.to_zarr(tmp_path / "r", chunk_bytes=500)
    whole = files(tmp_path / "r")
    sweep_rng.choice([found for found in (tmp_path / "r" / "rows" / "c").rglob("*") if found.is_file()]).unlink()
    with pytest.raises(StoreError, match="removed after it was complete"):
        open_zarr(tmp_path / "r")
    J.to_zarr(tmp_path / "r", mode="resume", chunk_bytes=500)
    assert files(tmp_path / "r") == whole


def test_a_damaged_chunk_of_a_complete_folder_is_written_again(tmp_path: Path, sweep_rng: random.Random) -> None:
    J = hesse.parameter_jacobian(model(), nn.CrossEntropyLoss(), batches(), memory=10**8)
    for name, write in (("rows", J.to_zarr), ("gram", J.gram_to_zarr)):
        write(tmp_path / name, chunk_bytes=500)
        whole = files(tmp_path / name)
        victim = sweep_rng.choice([found for found in (tmp_path / name / name / "c").rglob("*") if found.is_file()])
        data = bytearray(victim.read_bytes())
        data[sweep_rng.randrange(len(data))] ^= 1 << sweep_rng.randrange(8)
        victim.write_bytes(bytes(data))
        write(tmp_path / name, mode="resume", chunk_bytes=500)
        assert files(tmp_path / name) == whole


@pytest.mark.parametrize("room", [0, 4000, 9000])
def test_a_full_disk(room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    J = hesse.parameter_jacobian(model(), nn.CrossEntropyLoss(), batches(), memory=10**8)
    for name, write in (("rows", J.to_zarr), ("gram", J.gram_to_zarr)):
        write(tmp_path / f"whole {name}", chunk_bytes=500)
        with monkeypatch.context() as patched:
            patched.setattr(chunk_store_files, "os", FullDisk(room if name == "rows" else room // 3))
            with pytest.raises(StoreError, match=r'No space left.*\n.*mode="resume"'):
                write(tmp_path / name, chunk_bytes=500)
        with pytest.raises(StoreError, match=r"is read when all of it is there|no 'zarr"):
            open_zarr(tmp_path / name)
        write(tmp_path / name, mode="resume", chunk_bytes=500)
        assert files(tmp_path / name) == files(tmp_path / f"whole {name}")


def test_sizes_of_chunks(tmp_path: Path) -> None:
    J = hesse.parameter_jacobian(model(), None, batches())
    assert J.zarr_layout(chunk_bytes="1KiB") == J.zarr_layout(chunk_bytes=1024)  # pyright: ignore
    written = J.gram_to_zarr(tmp_path / "gram", chunk_bytes="1KiB")  # pyright: ignore
    assert written.bands.layout == J.gram_to_zarr(tmp_path / "same", chunk_bytes=1024).bands.layout
    K = hesse.ntk(model(), [x for x, _ in batches()])
    for wrong in (0, -5, 1.5, 0.5, True, None, "much", "0MiB"):
        for write in (J.to_zarr, J.gram_to_zarr, K.to_zarr, lambda _, chunk_bytes: J.zarr_layout(chunk_bytes=chunk_bytes)):
            with pytest.raises(StructureError, match="chunk_bytes= is a number of bytes"):
                write(tmp_path / "r", chunk_bytes=wrong)
    for write in (J.to_zarr, lambda _, projection: J.zarr_layout(projection=projection)):
        with pytest.raises(StructureError, match="int"):
            write(tmp_path / "r", projection=3)  # pyright: ignore
    assert not (tmp_path / "r").exists()


def begun(path: Path, monkeypatch: pytest.MonkeyPatch, J: JacobianBySample) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(patched, 3)
        J.to_zarr(path, chunk_bytes=500)


def test_resumes_only_with_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.tensor([1.0, 2.0, 3.0]).double()

    def make(change: str = "") -> JacobianBySample:
        module, data, factor = model(), batches(), 2.0 if change == "class weights" else 1.0
        if change == "a parameter":
            with torch.no_grad():
                module[0].bias[3] += 1e-12  # pyright: ignore
        if change == "training":
            module.eval()
        if change == "one input":
            data[1][0][2, 4] += 1e-12
        if change == "one target":
            data[3][1][0] = (data[3][1][0] + 1) % 3
        if change == "the order":
            data[0] = tuple(part.flip(0) for part in data[0])  # pyright: ignore
        if change == "the batches":
            data = [tuple(torch.cat(parts) for parts in zip(*data[:2], strict=True)), *data[2:]]  # pyright: ignore
        loss = nn.CrossEntropyLoss(weight=factor * weights, label_smoothing=0.1 if change == "smoothing" else 0.0)
        return hesse.parameter_jacobian(module, loss, data, params=["2.weight"] if change == "columns" else None)

    begun(tmp_path / "r", monkeypatch, make())
    found = {
        "a parameter": "parameters: 0.bias", "training": "model", "one input": "data: content in order",
        "one target": "data: content", "the order": "data: content", "the batches": "data: batches 4 there, 3 now",
        "class weights": "loss", "smoothing": "loss", "columns": "columns: 0.weight",
    }  # fmt: skip
    for change, part in found.items():
        with pytest.raises(DataError, match=f"not the same {part}"):
            make(change).to_zarr(tmp_path / "r", mode="resume", chunk_bytes=500)
    with pytest.raises(DataError, match="'rows' is"):
        make().to_zarr(tmp_path / "r", mode="resume", chunk_bytes=240)
    J = make()
    for match, change, undo in environments():
        try:
            change()
            with pytest.raises(DataError, match=f"not the same environment: {match}"):
                J.to_zarr(tmp_path / "r", mode="resume", chunk_bytes=500)
        finally:
            undo()
    assert there(tmp_path / "r") == 3
    make().to_zarr(tmp_path / "r", mode="resume", chunk_bytes=500)


def environments() -> Iterator[tuple[str, Callable[[], object], Callable[[], object]]]:
    """What decides the last bit besides the model and the data: what an error says, the change, and its end."""
    threads, default, precision = torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    more = f"threads {threads} there, {threads + 1} now"
    yield more, lambda: torch.set_num_threads(threads + 1), lambda: torch.set_num_threads(threads)
    yield "default dtype", lambda: torch.set_default_dtype(torch.float16), lambda: torch.set_default_dtype(default)
    medium = (lambda: torch.set_float32_matmul_precision("medium"), lambda: torch.set_float32_matmul_precision(precision))
    yield "float32 products", *medium
    strict = (lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False))
    yield "deterministic algorithms", *strict
    library, enabled = torch.backends.mkldnn, torch.backends.mkldnn.enabled  # pyright: ignore
    yield "library kernels", lambda: setattr(library, "enabled", not enabled), lambda: setattr(library, "enabled", enabled)
    lowered = torch.autocast("cpu", torch.bfloat16)
    yield "autocast 'None' there, 'torch.bfloat16' now", lowered.__enter__, lambda: lowered.__exit__(None, None, None)


class Scaled(nn.Module):
    """Reads a number that no fingerprint sees."""

    factor: list[float] = [1.0]  # noqa: RUF012 - shared on purpose

    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * type(self).factor[0]


def test_what_no_fingerprint_sees_is_compared_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> JacobianBySample:
        return hesse.parameter_jacobian(Scaled(), nn.CrossEntropyLoss(), batches())

    begun(tmp_path / "r", monkeypatch, make())
    Scaled.factor[0] = 1 + 1e-13
    try:
        with pytest.raises(DataError, match=r"computed again .* differ, by up to"):
            make().to_zarr(tmp_path / "r", mode="resume", chunk_bytes=500)
    finally:
        Scaled.factor[0] = 1.0
    assert there(tmp_path / "r") == 3
    make().to_zarr(tmp_path / "r", mode="resume", chunk_bytes=500)


def test_functions_by_their_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(loss: Any) -> JacobianBySample:
        return hesse.parameter_jacobian(model(), loss, batches())

    def power(exponent: float) -> Any:
        return lambda output, target: ((output - 1) ** exponent).sum()

    begun(tmp_path / "r", monkeypatch, make(power(2.0)))
    for other in (power(4.0), lambda output, target: (output**2).sum()):
        with pytest.raises(DataError, match="not the same loss"):
            make(other).to_zarr(tmp_path / "r", mode="resume", chunk_bytes=500)
    make(power(2.0)).to_zarr(tmp_path / "r", mode="resume", chunk_bytes=500)


def test_refusals(tmp_path: Path) -> None:
    J = hesse.parameter_jacobian(model(), nn.CrossEntropyLoss(), batches()[0], create_graph=True)
    with pytest.raises(UnsupportedError, match="create_graph"):
        J.to_zarr(tmp_path / "r")
    J = hesse.parameter_jacobian(model(), nn.CrossEntropyLoss(), batches()[0], memory=100)
    with pytest.raises(MemoryBudgetError, match="rows of 63 numbers"):
        J.to_zarr(tmp_path / "r")
    assert not (tmp_path / "r").exists()
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batches((15,))[0]), batch_size=4, shuffle=True)
    with pytest.raises(DataError, match="other samples"):
        hesse.parameter_jacobian(model(), nn.CrossEntropyLoss(), shuffled).to_zarr(tmp_path / "r")
    assert not ChunkStore.open(tmp_path / "r").complete if (tmp_path / "r").exists() else True
