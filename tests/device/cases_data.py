"""Rows of a data set, written, projected, and in blocks: ``name -> case``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import hesse

from .cases_curvature import LOSS, Case
from .place import Place

CASES: dict[str, Case] = {}


def rows(p: Place) -> Any:
    x, y = p.batch()
    return hesse.parameter_jacobian(p.network(), LOSS, [(x[:4], y[:4]), (x[4:], y[4:])])


def _data(p: Place) -> Any:
    J = rows(p)
    return J.norms(), J.gram(), J.sum_of_squares(), J.dense()


def _projected(p: Place) -> Any:
    x, y = p.batch()
    J = hesse.parameter_jacobian(p.network(), LOSS, (x, y))
    return J.project(hesse.random_projection(J, 5, seed=1))


def _compiled(p: Place) -> Any:
    model, (x, y) = p.network(), p.batch()
    rows = hesse.compile_rows(model, LOSS, lambda J: (J.norms(), J.clipped_sum(0.5), J.sum_of_squares()))
    found = [rows((x * scale, y)) for scale in (1.0, 0.9, 0.8, 0.7)]
    assert rows.replays >= 2, rows.direct
    return found


def _stored(p: Place) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        rows(p).to_zarr(Path(folder) / "rows.zarr")
        stored = hesse.open_zarr(Path(folder) / "rows.zarr")
        return stored.dense()


CASES.update(dict.fromkeys(("DataJacobian", "GramPlan"), _data))
CASES["random_projection"] = _projected
CASES["compile_rows"] = _compiled
CASES.update(dict.fromkeys(("open_zarr", "StoredMatrix"), _stored))
