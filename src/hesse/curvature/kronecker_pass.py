"""A pass over the data behind `kfac` and `ekfac`: which rows, and the moments of their factors added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.autodiff.model import Model, select_rows
from hesse.autodiff.output_curvature import refuse_linear, require_distribution
from hesse.core.errors import DataError, StructureError
from hesse.core.fingerprint import sample_hashes
from hesse.core.space import Space
from hesse.curvature.batch import BatchLoss, open_batch, seed_for
from hesse.curvature.fisher import Labels, check_labels, empirical_rows
from hesse.curvature.gauss_newton import require_samples
from hesse.curvature.ggn import of_batch
from hesse.curvature.kronecker import Box, KroneckerFactored, Place
from hesse.curvature.kronecker_blocks import FactorBlock
from hesse.operators.spread import Spread, Tables
from hesse.parameters import contractions
from hesse.parameters.contractions.moments import Approximation, Known, LookupMoments, Moments
from hesse.parameters.contractions.uses import Parts, Use
from hesse.parameters.jacobian import ParameterJacobian
from hesse.rules.forms import Contract, Lookup

_ASKED = "Kronecker factors are added up over batches."
KfacKind = Literal["sampled", "expected", "empirical", "ggn"]
_KINDS = ("sampled", "expected", "empirical", "ggn")


@dataclass(frozen=True, eq=False)
class How:
    """Which matrix is approximated, and how; `asked`: of which function, for errors."""

    kind: KfacKind
    approximation: Approximation
    labels: Labels
    samples: int
    seed: int
    widest: int
    asked: str

    def over(
        self, model: Model, loss: BatchLoss, batches: Iterable[Any], *, keep: bool = False, hashes: list[Tensor] | None = None
    ) -> Iterator[ParameterJacobian]:
        """The rows of each batch: the matrix is the sum of their ``RᵀR``, divided by the sum of their masses.

        Args:
            model, loss: what `kfac` takes.
            batches: what is read.
            keep: whether the records are kept.
            hashes: of the samples; filled.
        """
        for batch in batches:
            if hashes is not None:
                hashes.append(sample_hashes(batch))
            yield self.rows(model, loss, batch, keep=keep)
            del batch

    def rows(self, model: Model, loss: BatchLoss, batch: Any, *, keep: bool = False) -> ParameterJacobian:
        """The rows of one batch.

        One sample alone does not show where samples are in a graph: it is run beside itself, so that its rows have factors.
        """
        inputs, targets, count = open_batch(model, batch, self.asked)
        labels = self.labels
        if count == 1:
            twice = torch.tensor([0, 0])
            inputs, targets = select_rows(inputs, twice), select_rows(targets, twice)
            labels = select_rows(labels, twice) if isinstance(labels, Tensor) else labels
        if self.kind == "empirical":
            rows = empirical_rows(model, loss, (inputs, targets), labels, keep=keep)
        else:
            exact = of_batch(model, loss, (inputs, targets), "hessian" if self.kind == "ggn" else "information", self.asked)
            rows = exact.seeded_rows(self.samples if self.kind == "sampled" else None, self.seed, keep=keep)
        if count > 1:
            return rows
        one = rows.select([0])
        facts = replace(one.facts, mass=rows.mass if rows.additive else rows.mass / 2)
        return ParameterJacobian(one.source, facts, one.params)


def make_how(
    loss: BatchLoss, given: tuple[Any, Any, Any, int, torch.Generator | None, int], data: Any, asked: str
) -> How:
    """The options of `kfac` and `ekfac`, checked; `asked`: how errors name the question."""
    kind, approximation, labels, samples, generator, widest = given
    if kind not in _KINDS or approximation not in ("expand", "reduce") or not widest >= 1:
        raise StructureError(
            f"{asked.partition('(')[0]} takes a kind of matrix, an approximation, and the widest factor.",
            f"kind={kind!r}, approximation={approximation!r}, widest={widest!r}",
            f"pass one of {', '.join(map(repr, _KINDS))}; 'expand' or 'reduce'; a positive number",
        )
    check_labels(labels, data, kind)
    if kind == "sampled":
        require_samples(samples)
    if kind == "ggn":
        refuse_linear(loss, asked)
    elif kind != "empirical":
        require_distribution(loss, kind, asked)
    return How(kind, approximation, labels, samples, seed_for(data, generator) if kind == "sampled" else 0, widest, asked)


class Accumulated:
    """Moments by parameter (and box), added up over roots and batches."""

    def __init__(self) -> None:
        self.moments: dict[tuple[str, Box | None], Moments] = {}
        self.mass = 0.0
        self._additive: bool | None = None

    def add(self, rows: ParameterJacobian, how: How) -> None:
        """Add a batch."""
        known, lookups = Known(), dict[tuple[str, Box | None], LookupMoments]()
        shapes = dict(zip(rows.in_space.names, rows.in_space.shapes, strict=True))

        def take(root: int, name: str, use: Use) -> None:
            for box, part in boxes_of(use):
                if isinstance(part, Lookup) and how.approximation == "expand":
                    lookups.setdefault((name, box), LookupMoments(part)).add(part)
                else:
                    shape = shapes[name] if box is None else [stop - start for start, stop in box]
                    channels = shape[0] if len(shape) > 1 else 1
                    found = contractions.moments(part, name, how.approximation, how.widest, known, channels)
                    self._put((name, box), found)

        rows.source.visit(take)
        for key, sums in lookups.items():
            self._put(key, sums.result())
        self._additive = rows.additive
        self.mass += rows.mass

    def _put(self, key: tuple[str, Box | None], new: Moments) -> None:
        before = self.moments.get(key)
        if before is not None and before.kind != new.kind:
            raise StructureError(_ASKED, f"'{key[0]}' is used differently by different batches", "use batches of one kind")
        self.moments[key] = new if before is None else contractions.add_moments([before, new])

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return self._additive is None

    def operator(self, space: Space) -> KroneckerFactored:
        """The matrix."""
        mass = 1.0 if self._additive else self.mass
        if mass == 0:
            raise DataError(_ASKED, "a total mass of 0", "check the targets: none of them counts")
        dtypes = dict(zip(space.names, space.dtypes, strict=True))
        order = {name: i for i, name in enumerate(space.names)}
        places = [Place(name, box, _block(m, mass, dtypes[name])) for (name, box), m in self.moments.items()]
        return KroneckerFactored(space, tuple(sorted(places, key=lambda place: order[place.name])), mass)


    def tables(self) -> Tables:
        """The moments, the mass and whether losses add up, as tensors that can be added to those of other processes."""
        found: Tables = {("mass",): torch.tensor(self.mass, dtype=torch.float64)}
        if self._additive is not None:
            found["additive", self._additive] = torch.zeros(())
        for (name, box), m in self.moments.items():
            key = (name, box, m.kind)
            found |= {(*key, "left"): m.left, (*key, "right"): m.right}
            found[*key, "terms"] = torch.tensor(float(m.terms), dtype=torch.float64)
        return found

    @classmethod
    def of_tables(cls, tables: Tables) -> Accumulated:
        """The sum of what several processes have.

        Raises:
            StructureError: a parameter is used differently by different processes.
        """
        found = cls()
        found.mass, found._additive = float(tables["mass",]), ("additive", True) in tables
        for name, box, kind, side in (key for key in tables if isinstance(key, tuple) and len(key) == 4):
            if side == "left":
                key = (name, box, kind)
                terms = float(tables[*key, "terms"])
                found._put((name, box), Moments(tables[*key, "left"], tables[*key, "right"], terms, kind))
        return found


def added_up(how: How, batches: Iterable[ParameterJacobian]) -> Accumulated:
    """The moments of the rows of some batches.

    Raises:
        StructureError: a parameter is used differently by different batches.
    """
    found = Accumulated()
    for rows in batches:
        found.add(rows, how)
        del rows
    return found


def accumulated(own: Callable[[], Accumulated], data: Any, asked: str) -> Accumulated:
    """The moments of all data: of those of all processes, where the data are spread over them.

    Args:
        own: makes those of this process.
        data: of `kfac`.
        asked: what for, in error messages.

    Raises:
        DistributedError: another process failed. DataError: no batch. StructureError: a parameter is used differently by
        different batches.
    """
    if not isinstance(data, Spread):
        found = own()
        if found.is_empty:
            raise DataError(asked, "no batch", "pass at least one batch")
        return found
    return Accumulated.of_tables(data.add_up("Kronecker factors", lambda: own().tables()))


def boxes_of(use: Use) -> list[tuple[Box | None, Use]]:
    """The parts of a use that lie in disjoint boxes of the parameter, each on its own, if one of them has factors."""
    if isinstance(use, Parts) and any(isinstance(part, Contract | Lookup) for _, part in use.uses):
        return [(box, part) for box, part in use.uses]
    return [(None, use)]


def _block(moments: Moments, mass: float, dtype: torch.dtype) -> FactorBlock:
    """The factors of a block; the smaller one takes what the product is divided by."""
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    left, right = moments.left.to(wide), moments.right.to(wide)
    divisor = mass * (moments.terms if moments.kind == "kronecker" and moments.terms else 1.0)
    if moments.kind in ("exact", "blocks"):
        left = torch.ones_like(left)
    if moments.kind == "diagonal":
        right = torch.ones_like(right)
    if moments.kind in ("exact", "blocks") or (moments.kind == "kronecker" and right.numel() <= left.numel()):
        return FactorBlock(left, right / divisor, moments.kind)
    return FactorBlock(left / divisor, right, moments.kind)
