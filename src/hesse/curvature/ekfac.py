"""EKFAC: KFAC's eigenvectors with the right eigenvalues (George et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from hesse.curvature.kronecker_budget import Attempt, eigenvector_bytes, twice_added, with_unit_vectors, within_budget
from hesse.curvature.kronecker_pass import How, KfacKind, accumulated, boxes_of, make_how
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
    how, data = within_budget(how, resolved, data, _attempt(resolved, loss), memory)
    one = is_one_batch(data)
    kept: list[ParameterJacobian] = []
    passes: tuple[list[Tensor], list[Tensor]] = ([], [])
    seen = (None, None) if one or not data_check else passes
    require_same_question(resolved, loss, data, **vars(how))

    def first() -> Iterator[ParameterJacobian]:
        for rows in how.over(resolved, loss, data, keep=one, hashes=seen[0]):
            kept[:] = [rows] if one else []
            yield rows

    def second() -> Iterator[ParameterJacobian]:
        yield from kept if one else how.over(resolved, loss, data, hashes=seen[1])
        if fingerprint(*passes[0]) != fingerprint(*passes[1]):
            remedy = "fix the data (no random augmentation), or pass data_check=False"
            raise DataError("ekfac reads a data set twice.", "other samples in the second pass than in the first", remedy)

    return _corrected(_in_eigenbasis(accumulated(how, first(), data).operator(Space.of(resolved.params))), second(), data)


def _attempt(model: Model, loss: BatchLoss) -> Attempt:
    def attempt(how: How, piece: Any) -> int:
        start = twice_added(how, model, loss, piece).operator(Space.of(model.params))
        needed = eigenvector_bytes(start)
        start = with_unit_vectors(start)
        _corrected(start, (how.rows(model, loss, part) for part in (piece, piece)), None)
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


def _corrected(start: KroneckerFactored, batches: Iterator[ParameterJacobian], data: Any) -> KroneckerFactored:
    """The matrix in the eigenbasis, with the eigenvalues that the rows of the same batches have."""
    blocks: _Blocks = {(p.name, p.box): p.block for p in start.places}
    if isinstance(data, Spread):
        blocks = _of_first(blocks, data)
        sums = data.add_up("EKFAC's eigenvalues", lambda: _squares(blocks, batches))
    else:
        sums = _squares(blocks, batches)
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


def _squares(blocks: _Blocks, batches: Iterator[ParameterJacobian]) -> Tables:
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
