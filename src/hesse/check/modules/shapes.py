"""Other batch sizes: each row of a module that works by rows gets the output and the gradient that it gets elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hesse.check.functions.case import first_line
from hesse.check.modules.exact import check_slope, exact_specimen
from hesse.check.modules.ledger import Ledger
from hesse.check.modules.specimen import Named, Run, Specimen

Row = tuple[int, int]  # of a batch: from the inputs (0) or from the smaller ones (1), and which row
_LARGEST = 512  # rows: of longer batches, no longer ones are made


class RowWise:
    """A module's batch along the first axis, to be put together anew from its rows.

    Args:
        specimen: the module.

    Attributes:
        count: rows of the batch; 0 where there is no such axis.
        names: of the inputs that have it.
    """

    def __init__(self, specimen: Specimen) -> None:
        self._s = specimen
        lengths = {len(y) if y.dim() else 0 for y in specimen.outputs.values()}
        self.count = lengths.pop() if len(lengths) == 1 else 0
        dense = specimen.call.dense
        self.names = [name for name, t in dense.items() if t.dim() and len(t) == self.count]
        if not self.names or len(specimen.call.tensors()) != len(dense):
            self.count = 0
        self._sources: list[Run] = []

    @property
    def has_offsets(self) -> bool:
        """Whether an input looks like offsets: integers from 0 on that never fall, whose order must not change."""
        integers = [t for t in self._s.call.dense.values() if t.dim() == 1 and not t.is_floating_point() and not t.is_complex()]
        return any(len(t) > 1 and t[0] == 0 and bool((t.diff() >= 0).all()) and bool(t.any()) for t in integers)

    def inputs(self, rows: list[Row]) -> Named:
        """Every tensor of the call, those with a batch put together from rows; the moving ones require gradients."""
        smaller = self._s.shrunk()
        made = {}
        for name in self.names:
            own = self._s.call.dense[name]
            both = (own, smaller.get(name, own))
            picked = [both[source][row] for source, row in rows]
            made[name] = torch.stack(picked) if picked else own[:0].clone()
        return made

    def run(self, rows: list[Row]) -> Run:
        """A run on a batch of these rows. Cost: 1 evaluation."""
        made = self.inputs(rows)
        other = self._s.call.changed({name: t for name, t in made.items() if name not in self._s.call.values})
        moving = {**self._s.call.moving, **{name: t for name, t in made.items() if name in self._s.call.moving}}
        own, self._s.call = self._s.call, other
        try:
            return self._s.run(None, moving)
        finally:
            self._s.call = own

    def rows_of(self, rows: list[Row], what: tuple[Named, Named]) -> Named:
        """Rows picked from what the two sources gave."""
        return {name: torch.stack([what[source][name][row] for source, row in rows]) for name in what[0]}

    def expected(self, rows: list[Row]) -> tuple[Named, Named]:
        """Outputs and gradients of a batch of these rows, from those of the sources. Cost: 2 evaluations the first time."""
        s = self._s
        if not self._sources:
            self._sources = [s.run(), s.run(None, s.shrunk())]
        outputs = tuple({n: y.detach() for n, y in run.outputs.items()} for run in self._sources)
        whole = tuple(run.pull(s.cotangents) for run in self._sources)
        parts: list[Named] = []
        for source, run in enumerate(self._sources):
            times = torch.zeros(self.count)
            for other, row in rows:
                times[row] += other == source
            parts.append(run.pull({name: _by_row(times, u) * u for name, u in s.cotangents.items()}))
        summed = {name: parts[0][name] + parts[1][name] for name in whole[0] if name not in self.names}
        by_row = ({n: g for n, g in w.items() if n in self.names} for w in whole)
        first, second = by_row
        return self.rows_of(rows, (outputs[0], outputs[1])), {**summed, **self.rows_of(rows, (first, second))}

    def cotangents(self, rows: list[Row]) -> Named:
        """The cotangents of the rows."""
        return {name: torch.stack([u[row] for _, row in rows]) for name, u in self._s.cotangents.items()}


def check_shapes(specimen: Specimen, ledger: Ledger) -> None:
    """Batches of 1, n - 1, n + 1 and 2 n + 1 rows, in another order, and of none.

    Where each row of the outputs depends on its row of the inputs alone, wherever it stands, outputs and gradients are compared
    row by row with those of the whole batch; elsewhere, as where rows are positions in a sequence, the derivative is compared
    with a difference. A module that raises is noted.

    Cost: 3 gradients and 1 for each size.
    """
    batch = RowWise(specimen)
    n = batch.count
    if not n or n > _LARGEST or specimen.draws or specimen.by_design or batch.has_offsets:
        return
    rows = [(0, row) for row in range(n)]
    sizes = {f"{n + 1} rows": [*rows, (1, 0)], f"{2 * n + 1} rows": [*rows, *((1, row) for row in range(n)), (0, 0)]}
    if n > 1:
        sizes = {"rows in another order": rows[::-1], "1 row": rows[:1], **sizes}
    if n > 2:
        sizes[f"{n - 1} rows"] = rows[:-1]
    ordered = n > 1 and not _agrees(ledger, batch, sizes["rows in another order"])
    row_wise = not ordered and _independent(specimen, ledger, batch)
    row_wise = row_wise and sum(_agrees(ledger, batch, own) for own in sizes.values()) >= 2
    if ordered:
        ledger.note("rows of the outputs depend on where they stand: other numbers of rows were compared with differences")
    for check, own in sizes.items():
        if row_wise:
            ledger.attempt(check, lambda check=check, own=own: _compare(ledger, batch, check, own))
        elif check != "rows in another order":
            _by_differences(specimen, ledger, batch, check, own)
    if any(isinstance(part, nn.EmbeddingBag) for part in specimen.module.modules()):
        ledger.note("no rows: not tried, as torch's backward pass of no bags ends the process")
        return
    _check_empty(ledger, batch, row_wise=row_wise)


def _independent(s: Specimen, ledger: Ledger, batch: RowWise) -> bool:
    """Whether the other rows of the outputs stay when the first row of the inputs is another one."""
    inputs = s.call.moving
    for name in batch.names:
        if name in inputs:
            inputs[name][0] *= -0.5
    try:
        with torch.no_grad():
            found = s.outputs_of(s.module, inputs)
    except Exception:
        return False
    return ledger.close([y[1:] for y in found.values()], [s.outputs[name][1:] for name in found])


def _agrees(ledger: Ledger, batch: RowWise, rows: list[Row]) -> bool:
    """Whether the outputs are those of the rows."""
    try:
        found, expected = batch.run(rows).outputs, batch.expected(rows)[0]
    except Exception:
        return False
    return ledger.close([y.detach() for y in found.values()], list(expected.values()))


def _compare(ledger: Ledger, batch: RowWise, check: str, rows: list[Row]) -> None:
    try:
        run = batch.run(rows)
    except Exception as error:
        ledger.note(f"{check}: the module raises {first_line(error)}")
        return
    outputs, gradients = batch.expected(rows)
    words = "compared with the same rows in the whole batch"
    if ledger.agree(f"{check}: outputs", {n: y.detach() for n, y in run.outputs.items()}, outputs, words=words):
        ledger.agree(f"{check}: gradients", run.pull(batch.cotangents(rows)), gradients, words=words)


def _by_differences(s: Specimen, ledger: Ledger, batch: RowWise, check: str, rows: list[Row]) -> None:
    made = batch.inputs(rows)
    own, s.call = s.call, s.call.changed(made)
    try:
        exact = exact_specimen(s)
        if exact is not None:
            before = exact.evaluations
            check_slope(exact, ledger, check)
            s.evaluations += exact.evaluations - before
    finally:
        s.call = own


def _check_empty(ledger: Ledger, batch: RowWise, *, row_wise: bool) -> None:
    """No rows: where the module accepts that, gradients of the right shapes, zero if it works by rows."""
    try:
        run = batch.run([])
    except Exception as error:
        ledger.note(f"no rows: the module raises {first_line(error)}")
        return
    if not all(bool(y.isfinite().all()) for y in run.outputs.values()):
        ledger.note("no rows: the value is not finite")
        return

    def compare() -> None:
        found = run.pull({name: torch.ones_like(y) for name, y in run.outputs.items()})
        if row_wise:
            ledger.agree("no rows", found, {name: torch.zeros_like(t) for name, t in run.leaves.items()})
        elif not all(bool(g.isfinite().all()) for g in found.values()):
            ledger.wrong("no rows", "the gradient is not finite, though the value is")

    ledger.attempt("no rows", compare)


def _by_row(times: Tensor, u: Tensor) -> Tensor:
    return times.to(device=u.device, dtype=u.dtype).reshape(-1, *[1] * (u.dim() - 1))
