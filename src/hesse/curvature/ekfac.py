"""EKFAC: KFAC's eigenvectors with the right eigenvalues (George et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.model import Model, Selection, as_model, is_one_batch
from hesse.core.errors import DataError
from hesse.core.fingerprint import fingerprint
from hesse.core.memory import Budget
from hesse.core.space import Space
from hesse.curvature.batch import BatchLoss, require_same_question
from hesse.curvature.fisher import Labels
from hesse.curvature.kfac import WIDEST
from hesse.curvature.kronecker import Box, KroneckerFactored, Place
from hesse.curvature.kronecker_blocks import Block, EigenBlock
from hesse.curvature.kronecker_budget import Attempt, Reading, eigenvector_bytes, twice_added, with_unit_vectors
from hesse.curvature.kronecker_pass import Accumulated, How, KfacKind, accumulated, added_up, boxes_of, make_how
from hesse.operators.spread import Spread, Tables, asked_together
from hesse.parameters import contractions
from hesse.parameters.contractions.moments import Approximation
from hesse.parameters.contractions.uses import Use
from hesse.parameters.jacobian import ParameterJacobian

_ASKED = "ekfac(model, loss, data) corrects the eigenvalues of Kronecker factors, parameter by parameter."
_Blocks = dict[tuple[str, Box | None], Block]


@asked_together
def ekfac(  # noqa: PLR0913 - as kfac
    model: Any,
    loss: BatchLoss,
    data: Any,
    *,
    kind: KfacKind = "sampled",
    approximation: Approximation = "expand",
    labels: Labels = "true",
    samples: int = 1,
    generator: torch.Generator | None = None,
    widest: int = WIDEST,
    params: Selection = None,
    output: Callable[[Any], Tensor] | None = None,
    data_check: bool = True,
    memory: Budget | None = None,
) -> KroneckerFactored:
    """The eigenvalue-corrected Kronecker approximation of a Fisher or Gauss-Newton matrix, over one batch or a data set.

    The eigenvectors of KFAC's factors are kept; each eigenvalue is replaced by the second moment of the rows along its
    eigenvector, the best that any diagonal in this basis can do in the Frobenius norm. Weights that are shared over positions
    have their positions added up before the square is taken.

    Samples and positions whose target is ignored count for the eigenvectors as in `kfac`, among the inputs; the eigenvalues do
    not see them.

    With approximation="reduce" and fewer samples than a factor has numbers, eigenvectors of the factor's null space are
    arbitrary, rows have mass along them, and the result depends on the choice (with "expand" they have none there).

    Args:
        model, loss, data, kind, approximation, labels, samples, generator, widest, params, output, memory: as for `kfac`.
        data_check: for data sets: refuse them if the second pass sees other samples than the first (in whatever order).

    Returns:
        As `kfac`.

    Raises:
        DataError: the two passes saw different data. MemoryBudgetError: factors, eigenvectors and two samples do not fit.
        Others as `kfac`.

    Cost: two passes over a data set (one over a single batch that is not in slices), each as `kfac`; and the eigenvectors of
    every factor.
    """
    how = make_how(loss, (kind, approximation, labels, samples, generator, widest), data, _ASKED)
    resolved = as_model(model, params=params, output=output)
    require_same_question(resolved, loss, data, **vars(how))
    reading = Reading(how, resolved, loss, data, _attempt(resolved, loss), memory)
    passes = _TwoPasses(reading, checks=data_check and not is_one_batch(data))
    start = accumulated(lambda: reading.passes(passes.first), data, _ASKED).operator(Space.of(resolved.params))
    return _corrected(_in_eigenbasis(start), lambda blocks: reading.passes(lambda: passes.second(blocks)), data)


class _TwoPasses:
    """The passes for factors and for eigenvalues; a single batch that is not in slices is kept between them."""

    def __init__(self, reading: Reading, *, checks: bool) -> None:
        self._reading, self._checks = reading, checks
        self._kept: list[ParameterJacobian] = []
        self._hashes: tuple[list[Tensor], list[Tensor]] = ([], [])

    def first(self) -> Accumulated:
        self._kept.clear()
        return added_up(self._reading.how, self._rows(0))

    def second(self, blocks: _Blocks) -> Tables:
        if self._kept and self._reading.is_one:
            return _squares(blocks, self._kept)
        self._kept.clear()
        sums = _squares(blocks, self._rows(1))
        if fingerprint(*self._hashes[0]) != fingerprint(*self._hashes[1]):
            remedy = "fix the data (no random augmentation), or pass data_check=False"
            raise DataError("ekfac reads a data set twice.", "other samples in the second pass than in the first", remedy)
        return sums

    def _rows(self, place: int) -> Iterator[ParameterJacobian]:
        self._hashes[place].clear()
        for rows in self._reading.rows(keep=not place, hashes=self._hashes[place] if self._checks else None):
            if self._reading.is_one and not place:
                self._kept.append(rows)
            yield rows
            del rows


def _attempt(model: Model, loss: BatchLoss) -> Attempt:
    def attempt(how: How, piece: Any) -> int:
        start = twice_added(how, model, loss, piece).operator(Space.of(model.params))
        needed = eigenvector_bytes(start)
        start = with_unit_vectors(start)
        _corrected(start, lambda blocks: _squares(blocks, (how.rows(model, loss, part) for part in (piece, piece))), None)
        return needed

    return attempt


def _in_eigenbasis(start: KroneckerFactored) -> KroneckerFactored:
    """KFAC by the eigenvectors of its factors, each of which is dropped once its own are known."""
    space, mass, places, found = start.in_space, start.mass, list(start.places), list[Place]()
    del start
    while places:
        place = places.pop(0)
        found.append(Place(place.name, place.box, place.block.eigen) if place.block.kind == "kronecker" else place)
    return KroneckerFactored(space, tuple(found), mass)


def _corrected(start: KroneckerFactored, squares: Callable[[_Blocks], Tables], data: Any) -> KroneckerFactored:
    """The matrix in the eigenbasis, with the eigenvalues that `squares` of the same batches finds."""
    blocks: _Blocks = {(p.name, p.box): p.block for p in start.places}
    if isinstance(data, Spread):
        blocks = _of_first(blocks, data)
        sums = data.add_up("EKFAC's eigenvalues", lambda: squares(blocks))
    else:
        sums = squares(blocks)
    places = []
    for p in start.places:
        block = blocks[p.name, p.box]
        values = sums.get((p.name, p.box))
        if values is not None and isinstance(block, EigenBlock):
            block = EigenBlock(block.left, block.right, (values / start.mass).to(block.values.dtype), block.kind)
        places.append(Place(p.name, p.box, block))
    return KroneckerFactored(start.in_space, tuple(places), start.mass)


def _of_first(blocks: _Blocks, data: Spread) -> _Blocks:
    """The eigenvectors that the first process found: those of other machines may differ by rounding and signs."""
    sides = {key: block for key, block in blocks.items() if isinstance(block, EigenBlock)}
    named = {f"{key[0]} {key[1] or ''}": block for key, block in sides.items()}
    vectors = {f"{name} {side}": getattr(block, side) for name, block in named.items() for side in ("left", "right")}
    first = data.take_first("The eigenvectors of the Kronecker factors", vectors)
    taken = dict(zip(sides, named, strict=True))
    return blocks | {
        key: EigenBlock(first[f"{name} left"], first[f"{name} right"], sides[key].values, sides[key].kind)
        for key, name in taken.items()
    }


def _squares(blocks: _Blocks, batches: Iterable[ParameterJacobian]) -> Tables:
    """The second moments of the rows along the eigenvectors, by parameter and box."""
    sums: Tables = {}

    def take(name: str, use: Use) -> None:
        for box, part in boxes_of(use):
            block = blocks.get((name, box))
            if block is None:
                raise DataError("ekfac reads a data set twice.", f"a use of '{name}' in the second pass only", "fix the data")
            if not isinstance(block, EigenBlock):
                continue
            squares = contractions.rotated_squares(part, block.left, block.right)
            if squares is None:
                raise DataError("ekfac reads a data set twice.", f"other uses of '{name}' in the second pass", "fix the data")
            sums[name, box] = sums[name, box] + squares if (name, box) in sums else squares

    for rows in batches:
        rows.source.visit(lambda root, name, use: take(name, use))
    return sums
