"""`divergence`: the trace of a vector field's Jacobian, exact or estimated, for one point or for every row of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hesse.autodiff.blocks import chunk_for, pull_block, unit_rows
from hesse.autodiff.independence import batch_size, require_independent_rows
from hesse.autodiff.linearize import require_connected
from hesse.autodiff.recording import Function, Recording, inside_vmap, record
from hesse.autodiff.room import Room
from hesse.core import random
from hesse.core.batching import slices
from hesse.core.chunked import ChunkPlan, in_chunks
from hesse.core.errors import HolomorphyError, MemoryBudgetError, MixedSamplesError, StructureError, UnsupportedError
from hesse.core.memory import Budget, too_small
from hesse.core.tree import Tree
from hesse.derivatives.batched import same_unit_in_every_row
from hesse.derivatives.jacobian import one_of
from hesse.derivatives.probes import Noise, Probes
from hesse.derivatives.rows import has_rows, in_rows

_ASKED = "divergence(f, x) adds up the derivatives of every component of a vector field by its own coordinate."
_NOISES: dict[str, Noise] = {"rademacher": random.rademacher, "gaussian": random.normal}
_COPIES = 4  # of what the graph produced, for each vector of a batched pass
_MARGIN = 1.1  # over what was measured, where an error names it
_NOISE_BYTES = 2**20  # that no measurement tells


class DivergenceResult(NamedTuple):
    """A vector field's value and its divergence.

    Attributes:
        value: what ``f(x)`` returned.
        divergence: 0-d, or ``[n]`` for a batch.
        standard_error: like `divergence`: one standard deviation of the estimate, from the spread of its samples; 0 for
            method="exact", infinite for samples=1, which shows no spread.
    """

    value: Tree
    divergence: Tensor
    standard_error: Tensor


def divergence(
    f: Function,
    x: Any,
    *,
    method: Literal["exact", "hutchinson"] = "exact",
    samples: int = 16,
    noise: Literal["rademacher", "gaussian"] = "rademacher",
    generator: torch.Generator | None = None,
    structure: Literal["auto", "dense", "batched"] = "auto",
    memory: Budget | None = None,
) -> DivergenceResult:
    """The value and the divergence (the trace of the Jacobian) of a vector field.

    Args:
        f: takes x and returns a tree of the same structure and shapes.
        x: the point, a tensor ``[d]`` or a batch ``[n, *d]`` of points, or a tree of them.
        method: "exact", or "hutchinson": the mean of ``v . J v`` over random vectors v (Hutchinson 1990), an unbiased estimate
            that costs the same in any dimension (the FFJORD estimator, Grathwohl et al. 2019).
        samples: number of random vectors for method="hutchinson".
        noise: how they are drawn: random signs ("rademacher", smaller variance) or standard normal numbers ("gaussian").
        generator: where they are drawn from; without one, the same vectors each time. An integrator that must see one fixed
            vector field takes no generator; training that wants fresh noise in each step passes one.
        structure: "batched": leading axes are rows that are independent, which is checked; gives ``[n]``. "dense": everything
            is one point; gives a number. "auto": "batched" where every leaf of x has two or more axes.
        memory: budget in bytes, as a fraction of what is free, or as text ("2GiB").

    Returns:
        ``(value, divergence, standard_error)``, differentiable with respect to whatever upstream requires grad: x, and the
        parameters of f, as continuous normalizing flows need.

    Raises:
        StructureError: the value has other shapes than x; an unknown option. MixedSamplesError: rows influence each other.
        HolomorphyError: complex numbers. Others as `jacobian`.

    Cost: one forward pass; exact: d backward passes which share the graph, and for a batch about log2(n) for the proof that
    rows are independent; hutchinson: one backward pass a sample, and for a batch one more, which would show that rows are mixed
    by a layer (rows that influence each other add noise to the estimate, but no bias).
    """
    one_of("method", method, ("exact", "hutchinson"))
    one_of("noise", noise, tuple(_NOISES))
    one_of("structure", structure, ("auto", "dense", "batched"))
    if samples < 1:
        raise StructureError("samples is the number of random vectors.", repr(samples), "pass at least 1")
    rows = structure == "batched" or (structure == "auto" and has_rows(x))
    if method == "exact":

        def exact(part: Any) -> DivergenceResult:
            return _exact_divergence(f, part, structure, Room(None, part))

        by_row = in_rows(x, exact, memory, _ASKED) if rows else None
        return _exact_divergence(f, x, structure, Room(memory, x), measured=True) if by_row is None else by_row
    probes = Probes.of(x, _NOISES[noise], samples, generator, by_row=rows)

    def some(part: Any) -> DivergenceResult:
        return _estimated(f, part[0], structure, probes.of_rows(part[1]), Room(None, part[0]))

    by_row = in_rows((x, torch.arange(probes.count)), some, memory, _ASKED) if rows and probes.count else None
    found = _estimated(f, x, structure, probes, Room(memory, x), measured=True) if by_row is None else by_row
    return found if samples > 1 else found._replace(standard_error=torch.full_like(found.divergence, torch.inf))


class _Run:
    """A recorded field, and how many vectors share a pass.

    Args:
        f, x, structure: as for `divergence`.
        room: the memory that the call may take.
        measured: whether passes are measured against it; else the number of vectors a pass keeps to it by an estimate.

    Attributes:
        size: the number of rows for a batch.
    """

    def __init__(self, f: Function, x: Any, structure: str, room: Room, measured: bool) -> None:
        self.recording = recording = record(f, x, _ASKED)
        _require_field(recording)
        require_connected(recording, _ASKED)
        is_batched = structure == "batched" or (structure == "auto" and all(leaf.ndim > 1 for leaf in recording.inputs))
        self.size = batch_size(recording, _ASKED) if is_batched else None
        self.measures = measured and room.given is not None and not recording.functorch
        self.room, total = room, recording.in_space.dim // (self.size or 1)
        self.chunk = chunk_for(recording, total, 0, 2**62 if self.measures else room.given, "a divergence")
        self.graph = recording.graph_bytes() if self.measures else 0

    def passes(self, total: int, work: Callable[[slice], Tensor], label: str) -> list[Tensor]:
        """Some work on `total` vectors, in passes that fit.

        Raises:
            MemoryBudgetError: a pass with one vector does not fit, or the graphs of a result that is to be differentiable.
        """
        if not self.measures or self.room.given is None:
            return [work(part) for part in slices(total, self.chunk, label)]
        found: list[Tensor] = []

        def some(part: slice) -> list[Tensor]:
            return [work(slice(part.start + s.start, part.start + s.stop)) for s in slices(part.stop - part.start, self.chunk)]

        for part, pieces in self._measured(total, some, self.room.given, label):
            found += pieces
            if self.recording.follows([]):
                self._require_graphs(self.room.given, part.stop, total)
        return found

    def _measured(
        self, total: int, work: Callable[[slice], list[Tensor]], given: int, label: str
    ) -> Iterator[tuple[slice, list[Tensor]]]:
        """`in_chunks` beside the graph; errors name what both take."""
        held, each = self.room.held(self.graph), _COPIES * max(self.graph, 1)
        if given <= held:
            raise too_small(given, int(_MARGIN * (held + each)), "a divergence")
        try:
            yield from in_chunks(
                total, work, ChunkPlan(given - held, self.recording.in_space.device, "a divergence", each), label
            )
        except MemoryBudgetError as error:
            raise too_small(given, max(error.least + max(self.graph, held), given + 1), "a divergence") from error

    def _require_graphs(self, given: int, done: int, total: int) -> None:
        """Refuse a result that is to be differentiable, whose graphs will not fit."""
        taken = self.room.taken()
        if taken > given + _NOISE_BYTES:
            least = int(_MARGIN * taken * total / done) + _NOISE_BYTES
            raise too_small(given, least, "a divergence that is to be differentiable itself")


def _exact_divergence(f: Function, x: Any, structure: str, room: Room, *, measured: bool = False) -> DivergenceResult:
    run = _Run(f, x, structure, room, measured)
    if run.size is not None:
        require_independent_rows(run.recording, _ASKED, run.chunk)
    found = _exact(run) if run.size is None else _exact_rows(run, run.size)
    return DivergenceResult(run.recording.value, found, torch.zeros_like(found))


def _require_field(recording: Recording) -> None:
    if recording.in_space != recording.out_space:
        raise StructureError(
            _ASKED,
            f"a value in {recording.out_space} for x in {recording.in_space}",
            "return a tree with the structure and the shapes of x",
        )
    if any(dtype.is_complex for dtype in (*recording.in_space.dtypes, *recording.out_space.dtypes)):
        raise HolomorphyError(_ASKED, "complex numbers", "pass real and imaginary parts (torch.view_as_real) as real inputs")


def _exact(run: _Run) -> Tensor:
    recording, terms = run.recording, list[Tensor]()
    for index, leaf in enumerate(recording.inputs):

        def trace(part: slice, index: int = index, leaf: Tensor = leaf) -> Tensor:
            only: list[Tensor | None] = [None] * len(recording.inputs)
            only[index] = unit = unit_rows(leaf, part)
            return (pull_block(recording, only)[index] * unit).sum()

        terms += run.passes(leaf.numel(), trace, "divergence")
    return sum(terms, recording.outputs[0].new_zeros(()))


def _exact_rows(run: _Run, size: int) -> Tensor:
    recording, terms = run.recording, list[Tensor]()
    for index, leaf in enumerate(recording.inputs):

        def traces(part: slice, index: int = index, leaf: Tensor = leaf) -> Tensor:
            only: list[Tensor | None] = [None] * len(recording.inputs)
            only[index] = unit = same_unit_in_every_row(leaf, part)
            return (pull_block(recording, only)[index] * unit).unsqueeze(-1).flatten(2).sum((0, 2))

        terms += run.passes(leaf.numel() // size, traces, "divergence")
    return sum(terms, recording.outputs[0].new_zeros(size))


def _estimated(f: Function, x: Any, structure: str, probes: Probes, room: Room, *, measured: bool = False) -> DivergenceResult:
    """The mean of ``v . J v`` over random vectors, by row for a batch, and its standard error (0 for one vector)."""
    run = _Run(f, x, structure, room, measured)
    recording, keep = run.recording, 1 if run.size is None else 2
    if run.size is not None:
        _refuse_mixed_rows(recording, run.size)

    def products(part: slice) -> Tensor:
        vectors = probes.draw(part, recording.outputs)
        pulled = pull_block(recording, vectors)
        each = [(g * v).unsqueeze(-1).flatten(keep).sum(keep) for g, v in zip(pulled, vectors, strict=True)]
        return sum(each[1:], each[0])

    each = torch.cat(run.passes(probes.samples, products, "divergence (random vectors)"))
    spread = each.std(0) / probes.samples**0.5 if probes.samples > 1 else torch.zeros_like(each[0])
    return DivergenceResult(recording.value, each.mean(0), spread)


def _refuse_mixed_rows(recording: Recording, size: int) -> None:
    """Send a random cotangent back from a random half of the rows: it may not reach the other half."""
    if inside_vmap():
        raise UnsupportedError(
            _ASKED,
            "a batch inside torch.func.vmap, where the independence of rows cannot be looked at",
            "let vmap run over the rows as well, or pass structure='dense'",
        )
    generator = random.make_generator()
    half = torch.randperm(size, generator=generator)[: size // 2].to(recording.in_space.device)
    probes = [random.normal(y.shape, y.dtype, y.device, generator).index_fill(0, half, 0) for y in recording.outputs]
    for name, grad in zip(recording.in_space.names, recording.pull(probes), strict=True):
        reached = grad.detach()[half].reshape(len(half), -1).ne(0).any(1)
        if bool(reached.any()):
            raise MixedSamplesError(
                _ASKED,
                f"row {int(half[reached][0])} of x{f' at {name!r}' if name else ''} influences other rows of the value",
                "switch normalization to eval mode, or use structure='dense'",
            )
