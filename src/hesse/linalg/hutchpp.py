"""Hutch++: the trace of a low-rank approximation exactly, what is left of it by random signs.

Meyer, Musco, Musco, Woodruff: Hutch++: optimal stochastic trace estimation (Symposium on Simplicity in
Algorithms, 2021), in stages: with Q the basis of the products of one third of the vectors,

    tr(Q^H A Q) + mean over other random signs g of g^H P A P g,  P = 1 - Q Q^H.

Earlier products of g serve a larger basis too, since ``g^H P A P g`` follows from ``A g`` and ``A Q``. The samples
are independent given Q, so that the standard error is that of a plain mean. Where a memory budget ends the growth of Q,
the other signs go on alone, and are not kept.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor

from hesse.core.memory import Budget, current_budget, given_budget
from hesse.core.progress import track
from hesse.linalg.adaptive import Found, Goal, Search
from hesse.linalg.hutchinson import FEWEST, Moments
from hesse.linalg.products import apply, beside, block_bytes, rows_at_once, sign_vectors
from hesse.linalg.sketch import Sketch, capacity, sketch_bytes
from hesse.linalg.xtrace import TraceOf
from hesse.operators import LinearOperator

_GROWTH = 4
_LEAST = 8


def hutchpp(A: LinearOperator, goal: Goal, generator: torch.Generator, memory: Budget | None) -> tuple[Found | None, int]:
    """The estimate, or None as soon as the exact trace costs no more; and the products spent."""
    room = capacity(A, memory) // 2  # two of what `capacity` counts: of the sketch, and of the other signs
    if goal.exact_cost < 3 * FEWEST:
        return None, 0
    if room < FEWEST or goal.most < 3 * FEWEST:
        return _rest(A, goal, generator, memory, (None, 0))
    is_given = given_budget(memory, A.in_space.device) is not None
    kept = sketch_bytes(A, 2 * room) if is_given else current_budget(memory, A.in_space.device) // 2
    at_once = rows_at_once(A, goal.most, "Hutch++", memory=memory, kept=kept)
    taken = kept + block_bytes(A, at_once)
    trace_of, sketch, others = TraceOf(A), Sketch(A, adjoint=False), Sketch(A, adjoint=False)
    best, noise, spent = None, 0.0, 0
    for _ in track(count(), "trace (Hutch++)"):
        size = len(others.probes)
        wanted = max(_LEAST, size // _GROWTH) if size else FEWEST
        if 3 * (size + wanted) > goal.exact_cost or spent + 3 * wanted > goal.most:
            return (None if goal.exact_cost < math.inf else best), spent
        if size + wanted > room:
            del sketch, others
            return _rest(A, goal, generator, memory, (best, spent))
        for start in range(0, wanted, at_once):
            for part in (sketch, others):
                probes = sign_vectors(A.in_space, min(at_once, wanted - start), generator)
                with beside(A, taken, memory, kept=0, part=0.5):
                    products = apply(A, probes)
                noise = max(noise, trace_of.noise(products))
                if part is sketch:
                    sketch.grow(probes, products)
                else:
                    others.probes = torch.cat([others.probes, probes.to(others.probes.dtype)])
                    others.products = torch.cat([others.products, products])
        with beside(A, taken, memory, kept=0, part=0.5):
            spent += 2 * wanted + sketch.complete(at_once)
        best = _estimate(sketch, others.probes, others.products, trace_of, goal, noise)
        if best.converged:
            return best, spent
    return best, spent


def _rest(
    A: LinearOperator, goal: Goal, generator: torch.Generator, memory: Budget | None, so_far: tuple[Found | None, int]
) -> tuple[Found | None, int]:
    """With what is left of the products: the sketch that fits, and signs that are not kept."""
    best, spent = so_far
    rest = Search(A, TraceOf(A), replace(goal, most=goal.most - spent), generator, memory, "trace (Hutch++)")
    return rest.better(best, rest.streamed()), spent + rest.products


def _estimate(sketch: Sketch, probes: Tensor, products: Tensor, trace_of: TraceOf, goal: Goal, noise: float) -> Found:
    rest = Moments()
    rest.add(trace_of.beyond(sketch, probes, products))
    errors = (rest.errors.square() + noise**2).sqrt()
    return Found(rest.mean, errors, float(errors), max(goal.atol, goal.rtol * rest.size, 2 * noise))
