"""Gram matrices and kernels on disk equal products of plain loops' rows; a resumed run computes the tasks that are left."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zarr
from torch import nn

import hesse
from hesse.core.errors import DataError, StructureError
from hesse.operators import Tag
from hesse.parameters import GramPlan
from hesse.parameters.gram_blocks import gram_blocks
from hesse.parameters.storing import gram as gram_module
from hesse.parameters.storing.matrix import open_zarr

from .small import batches, files, model, plain_rows, stop_after, there

CASES = list(itertools.product([60, 250, 10**6], [False, True], [6_000, 10**9]))


def test_gram_matrices(tmp_path: Path, untouched: None, sweep: Callable[..., list[tuple[int, bool, int]]]) -> None:
    for number, (chunk_bytes, outputs, budget) in enumerate(sweep(CASES, 3)):
        module, data, loss = model(), batches(), None if outputs else nn.CrossEntropyLoss()
        J = hesse.parameter_jacobian(module, loss, data, memory=budget)
        K = J.gram_to_zarr(tmp_path / str(number), chunk_bytes=chunk_bytes)
        rows = plain_rows(module, loss, data).flatten(0, -2)
        wanted = (rows @ rows.mT).reshape(*J.out_space.shapes[0], *J.out_space.shapes[0])
        assert K.kind == "gram" and Tag.SYMMETRIC in K.tags
        assert K[:].shape == wanted.shape and torch.allclose(K[:], wanted, rtol=1e-10, atol=1e-13)
        group: Any = zarr.open(str(tmp_path / str(number)), mode="r")
        assert torch.equal(torch.from_numpy(group["gram"][:]), K[:])
        assert torch.equal(hesse.dense(K), hesse.dense(K).mT)


def test_tangent_kernels(tmp_path: Path) -> None:
    module, first, second = model(), batches((4, 3)), batches((2, 5))
    inputs, others = ([x for x, _ in data] for data in (first, second))
    K = hesse.ntk(module, [*inputs, inputs[0]], [*others, inputs[1]]).to_zarr(tmp_path / "k")
    rows, columns = plain_rows(module, None, [*first, first[0]]), plain_rows(module, None, [*second, first[1]])
    assert torch.allclose(K[:], torch.einsum("ncd,mkd->ncmk", rows, columns), rtol=1e-10, atol=1e-13)


def test_two_data_sets(tmp_path: Path) -> None:
    module, data, other = model(), batches((4, 3, 6)), batches((5, 2))
    first, second = (hesse.parameter_jacobian(module, None, part) for part in (data, other))
    K = first.gram_to_zarr(tmp_path / "k", second, chunk_bytes=300)
    wanted = torch.einsum("ncd,mkd->ncmk", plain_rows(module, None, data), plain_rows(module, None, other))
    assert torch.allclose(K[:], wanted, rtol=1e-10, atol=1e-13) and not K.tags
    assert K.out_space == first.out_space and K.in_space == second.out_space
    assert torch.allclose(K[2:4], wanted[2:4], rtol=1e-10, atol=1e-13)
    same = first.gram_to_zarr(tmp_path / "same", first, chunk_bytes=300)
    assert Tag.SYMMETRIC in same.tags
    narrow = hesse.parameter_jacobian(module, None, other, params=["2.weight"])
    with pytest.raises(StructureError, match="same parameters"):
        first.gram_to_zarr(tmp_path / "narrow", narrow)
    lossy = hesse.parameter_jacobian(module, nn.CrossEntropyLoss(), other)
    assert first.gram_to_zarr(tmp_path / "mixed", lossy)[:].shape == (13, 3, 7)


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (4, 3, 6, 2, 1)])
def test_resumed_runs(
    sizes: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep_rng: random.Random
) -> None:
    tasks: list[int] = []

    def watched(first: Any, second: Any, plan: Any, chosen: Any, failing: Any) -> Any:
        tasks.append(len(chosen))
        return gram_blocks(first, second, plan, chosen, failing)

    monkeypatch.setattr("hesse.parameters.storing.gram.gram_blocks", watched)

    def make(memory: int = 15_000) -> Any:
        return hesse.parameter_jacobian(model(), nn.CrossEntropyLoss(), batches(sizes), memory=memory)

    make().gram_to_zarr(tmp_path / "whole", chunk_bytes=140)
    chunks, total = there(tmp_path / "whole"), tasks.pop()
    stop = sweep_rng.randrange(3, chunks)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(patched, stop)
        make().gram_to_zarr(tmp_path / "k", chunk_bytes=140)
    assert there(tmp_path / "k") == stop
    tasks.clear()
    make(memory=40_000).gram_to_zarr(tmp_path / "k", mode="resume", chunk_bytes=140)  # a plan of its own would be another
    assert files(tmp_path / "k") == files(tmp_path / "whole")
    assert tasks[-1] < total and len(tasks) <= 2
    with pytest.raises(DataError, match="not the same data"):
        other = hesse.parameter_jacobian(model(), nn.CrossEntropyLoss(), batches((*sizes, 1)))
        other.gram_to_zarr(tmp_path / "k", mode="resume", chunk_bytes=140)


def test_a_resumed_run_captures_the_pieces_that_its_header_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep_rng: random.Random
) -> None:
    plans: list[GramPlan] = []

    def watched(first: Any, second: Any, plan: GramPlan, chosen: Any, failing: Any) -> Any:
        plans.append(plan)
        return gram_blocks(first, second, plan, chosen, failing)

    monkeypatch.setattr("hesse.parameters.storing.gram.gram_blocks", watched)

    def write(name: str, *numbers: Any, mode: Any = "create") -> None:
        J = hesse.parameter_jacobian(model(), nn.CrossEntropyLoss(), batches((7, 6, 4)))
        planned = GramPlan(J.sizes, None, *numbers)
        monkeypatch.setattr("hesse.parameters.storing.budget.plan_gram", lambda *_: planned)
        J.gram_to_zarr(tmp_path / name, chunk_bytes=140, mode=mode)

    write("whole", 6, 2, 4)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(patched, sweep_rng.randrange(3, there(tmp_path / "whole")))
        write("k", 6, 2, 4)
    write("k", 3, 1, None, mode="resume")
    assert {(plan.tile, plan.held, plan.captured) for plan in plans} == {(6, 2, 4)}
    assert files(tmp_path / "k") == files(tmp_path / "whole")
    assert GramPlan((7,), None, 3, 1, 2).begun({"tile": 5, "held": 4}) == GramPlan((7,), None, 5, 4)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    first = hesse.parameter_jacobian(model(), None, batches((4, 3)))
    second, third = (hesse.parameter_jacobian(model(), None, batches(sizes)) for sizes in ((5, 2), (2, 5)))
    first.gram_to_zarr(tmp_path / "k", second)
    with pytest.raises(DataError, match="not the same data of the columns"):
        first.gram_to_zarr(tmp_path / "k", third, mode="resume")
    with pytest.raises(DataError, match="of the columns"):
        first.gram_to_zarr(tmp_path / "k", mode="resume")
    assert open_zarr(tmp_path / "k").kind == gram_module.GRAM
