"""`divergence`: the trace of a vector field's Jacobian, exact or estimated, for one point or for every row of a batch."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hesse.autodiff.blocks import chunk_for, pull_block, unit_blocks
from hesse.autodiff.independence import batch_size, require_independent_rows
from hesse.autodiff.linearize import require_connected
from hesse.autodiff.recording import Function, Recording, inside_vmap, record
from hesse.core import random
from hesse.core.batching import slices
from hesse.core.errors import HolomorphyError, MixedSamplesError, StructureError, UnsupportedError
from hesse.core.memory import Budget
from hesse.core.tree import Tree
from hesse.derivatives.batched import same_unit_in_every_row
from hesse.derivatives.jacobian import one_of
from hesse.derivatives.rows import has_rows, in_rows

_ASKED = "divergence(f, x) adds up the derivatives of every component of a vector field by its own coordinate."
_NOISES = {"rademacher": random.rademacher, "gaussian": random.normal}


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
    if method == "exact":
        rows = structure == "batched" or (structure == "auto" and has_rows(x))
        found = in_rows(x, lambda part: _exact_divergence(f, part, structure, memory), memory, _ASKED) if rows else None
        return _exact_divergence(f, x, structure, memory) if found is None else found
    recording, size, chunk = _recorded(f, x, structure, memory)
    if size is not None:
        _refuse_mixed_rows(recording, size)
    source = random.make_generator() if generator is None else generator
    return DivergenceResult(recording.value, *_hutchinson(recording, size, chunk, samples, noise, source))


def _recorded(f: Function, x: Any, structure: str, memory: Budget | None) -> tuple[Recording, int | None, int]:
    """The run, the number of rows for a batch, and how many vectors share a pass."""
    recording = record(f, x, _ASKED)
    _require_field(recording)
    require_connected(recording, _ASKED)
    is_batched = structure == "batched" or (structure == "auto" and all(leaf.ndim > 1 for leaf in recording.inputs))
    size = batch_size(recording, _ASKED) if is_batched else None
    return recording, size, chunk_for(recording, recording.in_space.dim // (size or 1), 0, memory, "a divergence")


def _exact_divergence(f: Function, x: Any, structure: str, memory: Budget | None) -> DivergenceResult:
    recording, size, chunk = _recorded(f, x, structure, memory)
    if size is not None:
        require_independent_rows(recording, _ASKED, chunk)
    found = _exact(recording, chunk) if size is None else _exact_rows(recording, size, chunk)
    return DivergenceResult(recording.value, found, torch.zeros_like(found))


def _require_field(recording: Recording) -> None:
    if recording.in_space != recording.out_space:
        raise StructureError(
            _ASKED,
            f"a value in {recording.out_space} for x in {recording.in_space}",
            "return a tree with the structure and the shapes of x",
        )
    if any(dtype.is_complex for dtype in (*recording.in_space.dtypes, *recording.out_space.dtypes)):
        raise HolomorphyError(_ASKED, "complex numbers", "pass real and imaginary parts (torch.view_as_real) as real inputs")


def _exact(recording: Recording, chunk: int) -> Tensor:
    terms = []
    for index, _, block in unit_blocks(recording.inputs, chunk, "divergence"):
        only = [u if i == index else None for i, u in enumerate(block)]
        terms.append((pull_block(recording, only)[index] * block[index]).sum())
    return sum(terms, recording.outputs[0].new_zeros(()))


def _exact_rows(recording: Recording, size: int, chunk: int) -> Tensor:
    terms = []
    for index, leaf in enumerate(recording.inputs):
        for columns in slices(leaf.numel() // size, chunk, "divergence"):
            only: list[Tensor | None] = [None] * len(recording.inputs)
            unit = same_unit_in_every_row(leaf, columns)
            only[index] = unit
            terms.append((pull_block(recording, only)[index] * unit).unsqueeze(-1).flatten(2).sum((0, 2)))
    return sum(terms, recording.outputs[0].new_zeros(size))


def _hutchinson(
    recording: Recording, size: int | None, chunk: int, samples: int, noise: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mean and standard error of ``v . J v`` over random vectors, by row for a batch."""
    draw, keep = _NOISES[noise], 1 if size is None else 2
    pieces = []
    for part in slices(samples, chunk, "divergence (random vectors)"):
        count = part.stop - part.start
        probes = [draw((count, *y.shape), y.dtype, y.device, generator) for y in recording.outputs]
        pulled = pull_block(recording, probes)
        products = [(g * v).unsqueeze(-1).flatten(keep).sum(keep) for g, v in zip(pulled, probes, strict=True)]
        pieces.append(sum(products[1:], products[0]))
    each = torch.cat(pieces)
    if samples == 1:
        return each[0], torch.full_like(each[0], torch.inf)
    return each.mean(0), each.std(0) / samples**0.5


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
