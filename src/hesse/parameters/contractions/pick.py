"""Some samples of a use."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hesse.parameters.contractions.uses import Mixed, Parts, Use
from hesse.rules.forms import Chained, Contract, Dense, Form, Lookup, Part, Rows
from hesse.rules.layers.convolution import Patches


@dataclass(frozen=True, eq=False)
class _Picked:
    """Rows of some samples, taken when they are needed."""

    rows: Rows
    samples: Tensor

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.samples), *self.rows.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.dtype

    def __getitem__(self, samples: slice) -> Tensor:
        return torch.cat([self.rows[slice(i, i + 1)] for i in self.samples[samples].tolist()])


def pick(use: Use, samples: Tensor) -> Use:
    """The use of the samples with the given numbers."""
    if isinstance(use, Mixed):
        return Mixed(tuple(_pick_form(form, samples) for form in use.forms), use.shape)
    if isinstance(use, Parts):
        return Parts(tuple((box, pick(part, samples)) for box, part in use.uses), use.whole)
    return _pick_form(use, samples)  # pyright: ignore[reportReturnType]


def _pick_form(form: Form, samples: Tensor) -> Form:
    if isinstance(form, Contract):
        return Contract(_pick_rows(form.left, samples), _pick_rows(form.right, samples))
    if isinstance(form, Lookup):
        return Lookup(form.index[samples], form.g[samples], form.table)
    if isinstance(form, Dense):
        return Dense(form.rows[samples])
    inner = _pick_form(form.form, samples)
    if isinstance(form, Part):
        return Part(inner, form.box, form.whole)
    assert isinstance(form, Chained)
    return Chained(inner, form.back, len(samples))


def _pick_rows(rows: Rows, samples: Tensor) -> Rows:
    if isinstance(rows, Patches):
        return replace(rows, image=rows.image[samples])
    return rows[samples] if isinstance(rows, Tensor) else _Picked(rows, samples)
