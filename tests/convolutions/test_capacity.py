"""Entries of the capacity matrix against products of the inverse on the torus with unit vectors."""

from __future__ import annotations

import itertools

import pytest
import torch

from hesse.convolutions import capacity, fields
from hesse.convolutions.capacity import Response
from hesse.convolutions.fields import Columns
from hesse.convolutions.geometry import Geometry
from hesse.convolutions.torus import Slots, Torus

REAL, COMPLEX = torch.float64, torch.complex128
TORUS = Torus(Geometry(2, 3, 2, (7, 6), (3, 3), (1, 2), (1, 1), ((1, 1), (1, 2)), "zeros"))
SKEWS = list(itertools.product((False, True), repeat=2))


def slots(count: int, phases: int, seed: int) -> Slots:
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(TORUS.cells * phases, generator=generator)[:count]
    return Slots(flat // TORUS.cells, flat % TORUS.cells)


def block(dtype: torch.dtype, skew: tuple[bool, ...], rows: int, columns: int) -> torch.Tensor:
    """A block of a symbol ``[frequencies, groups, rows, columns]``, of which real images give real ones."""
    table = torch.randn(2, rows, columns, *TORUS.size, dtype=dtype, generator=torch.Generator().manual_seed(1))
    from hesse.convolutions.symbol import to_frequencies

    return to_frequencies(table, 2, skew).flatten(3).permute(3, 0, 1, 2)


@pytest.mark.parametrize("chunk", [1 << 22, 50])
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("skew", SKEWS)
def test_entries_are_answers_to_unit_vectors(
    skew: tuple[bool, ...], dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "_CHUNK", chunk)
    phases = TORUS.phases
    T = block(dtype, skew, 2 * phases, 3)  # inputs of 2 channels from outputs of 3, in two groups
    table = fields.impulse_response(T, TORUS, skew, dtype, (phases, 1))
    copies = torch.tensor([True, False, True, True, False])
    rows = Columns(True, slots(5, phases, 2), slots(5, phases, 3), copies)
    columns = Columns(False, slots(4, 1, 4))
    found = Response(table, (phases, 1)).between(rows, columns, TORUS, skew)
    assert found.shape == (2, 5 * 2, 4 * 3)
    zero = torch.zeros(12, 2, 3, TORUS.cells, dtype=dtype)
    eye = torch.eye(12, dtype=dtype)[:, None].expand(12, 2, 12)
    unit = columns.add(zero, eye, TORUS)
    answers = fields.from_spectrum(T @ fields.spectrum(unit, TORUS, skew), TORUS, skew, dtype, phases)
    known = rows.take(answers, TORUS).permute(1, 2, 0)
    assert torch.allclose(found, known, rtol=0, atol=1e-13)


def test_taking_and_adding_are_transposes() -> None:
    columns = Columns(True, slots(6, 2, 5), slots(6, 2, 6), torch.tensor([True, True, False, True, False, True]))
    generator = torch.Generator().manual_seed(7)
    field = torch.randn(3, 2, 2, 2 * TORUS.cells, dtype=REAL, generator=generator)
    numbers = torch.randn(3, 2, 12, dtype=REAL, generator=generator)
    left = (columns.take(field, TORUS) * numbers).sum()
    right = (field * columns.add(torch.zeros_like(field), numbers, TORUS)).sum()
    assert float((left - right).abs()) < 1e-12
    assert torch.equal(columns.add(field, 0 * numbers, TORUS), field)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("skew", SKEWS)
def test_spectra_are_undone(skew: tuple[bool, ...], dtype: torch.dtype) -> None:
    field = torch.randn(3, 2, 5, 2 * TORUS.cells, dtype=dtype, generator=torch.Generator().manual_seed(8))
    waves = fields.spectrum(field, TORUS, skew)
    assert waves.shape[1:] == (2, 10, 3)
    assert torch.allclose(fields.from_spectrum(waves, TORUS, skew, dtype, 2), field, rtol=0, atol=1e-14)
    images = torch.randn(3, 4, 7, 6, dtype=dtype, generator=torch.Generator().manual_seed(9))
    held = fields.embed(images, TORUS.inputs, 2, TORUS, TORUS.phases)
    assert held.shape == (3, 2, 2, TORUS.phases * TORUS.cells)
    assert torch.equal(fields.extract(held, TORUS.inputs, (4, 7, 6), TORUS), images)
