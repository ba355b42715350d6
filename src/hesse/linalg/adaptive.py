"""Estimates that choose for themselves between plain random probes and deflation by a low-rank approximation.

Plain probes (Hutchinson) win on flat spectra, deflation (XTrace, XDiag) by orders of magnitude on decaying ones.
Both begin with the same products ``A omega``. Deflation needs as many again, of the basis of these, but what
of them lies outside the basis of the others tells beforehand what deflation would leave. So:

- draw probes until the plain mean is good enough, or
- until what deflation would leave is good enough, or well below the plain error at equal cost; from then on
  both kinds of products are made, and the first estimate within the tolerance is taken;
- give up, for the exact answer, where both look dearer than that.

Products for the trace of a symmetric matrix of dimension 1000 to a relative standard error (means of four seeds;
"-": not within 4000; e: the exact trace took over, whose 1000 products are counted; step: 50 eigenvalues 1, else 1e-3):

    spectrum   rtol    Hutchinson  Hutch++  XTrace   auto
    1 ... 3    3e-2            16       48      32     16
    1 ... 3    3e-3            28       90     282     28
    1 ... 3    1e-4             -    1699e   1032e  1016e
    1/i        3e-2            75       48      32     32
    1/i        3e-3             -      208     192    192
    1/i        1e-4             -    1699e   1553e  1553e
    1/i^2      3e-2           900       48      32     32
    1/i^2      1e-4             -      288     240    240
    0.9^i      3e-2           128       60      48     48
    0.9^i      1e-4             -      220     154    154
    step       3e-2            55       90      74     54
    step       1e-4             -      177     124    124
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from hesse.core.errors import MemoryBudgetError
from hesse.core.memory import Budget, current_budget, given_budget
from hesse.core.progress import track
from hesse.linalg.hutchinson import FEWEST, Moments, next_count, projected
from hesse.linalg.products import apply, beside, block_bytes, rows_at_once, sign_vectors
from hesse.linalg.sketch import Sketch, capacity, explained, sketch_bytes
from hesse.operators import LinearOperator

_GROWTH = 4  # a sketch grows by a quarter, at least by _LEAST
_LEAST = 8
_MEANS = 8  # vectors that means and spreads of a diagonal take
_CLEAR_WIN = 0.35  # of the plain error with as many probes: half of it with as many products
_MOSTLY = 0.9  # products explained by the others to this part: past the knee of the spectrum
_WASTE = 6  # products up to this fraction of the exact cost are spent on looking for decay


class Quantity(Protocol):
    """What is estimated; samples and values are tensors whose trailing shape is that of the quantity."""

    adjoint: bool

    def plain(self, probes: Tensor, products: Tensor) -> Tensor:
        """Independent unbiased samples ``[k, d]``, one for each probe."""
        ...

    def noise(self, products: Tensor) -> float:
        """The rounding error of a sample."""
        ...

    def tail(self, sketch: Sketch) -> Tensor:
        """Samples ``[m, d]`` of what deflation would leave to chance."""
        ...

    def beyond(self, sketch: Sketch, probes: Tensor, products: Tensor) -> Tensor:
        """Independent unbiased samples ``[k, d]`` from probes that a complete sketch has not seen, less its part exactly."""
        ...

    def deflated(self, sketch: Sketch) -> tuple[Tensor, Tensor]:
        """The estimate ``[d]`` and its standard errors, from a complete sketch."""
        ...


@dataclass(frozen=True)
class Goal:
    """When to stop.

    Attributes:
        rtol, atol: the tolerance on the 2-norm of the errors.
        most: products that may be spent.
        exact_cost: products of the exact answer, or infinity where it is not wanted.
    """

    rtol: float
    atol: float
    most: int
    exact_cost: float


@dataclass(frozen=True)
class Found:
    """An estimate: ``value`` and ``errors`` ``[d]``, the 2-norm of the errors and its target."""

    value: Tensor
    errors: Tensor
    error: float
    target: float

    @property
    def converged(self) -> bool:
        """Whether the error is as small as was asked for."""
        return self.error <= self.target


class Search:
    """One estimate in the making.

    Args:
        A: the operator.
        quantity: what is estimated.
        goal: when to stop.
        generator: source of the random signs.
        memory: the budget; half of it may be kept for the sketch.
        label: what progress and errors call it.
    """

    def __init__(
        self,
        A: LinearOperator,
        quantity: Quantity,
        goal: Goal,
        generator: torch.Generator,
        memory: Budget | None,
        label: str,
    ) -> None:
        self._operator, self._quantity, self._goal, self._label = A, quantity, goal, label
        self._generator, self._memory = generator, memory
        self._capacity = capacity(A, memory)
        self._keep_for_sketch(self._capacity if self._capacity >= FEWEST else 0)
        self._moments = Moments()
        self._noise, self._products = 0.0, 0
        self._errors: list[tuple[int, float]] = []  # sizes of complete sketches and the errors they gave

    def _keep_for_sketch(self, room: int) -> None:
        """Leave a part of the budget to a sketch of so many probes, if there is one, and a part of the rest to blocks."""
        A, given = self._operator, given_budget(self._memory, self._operator.in_space.device)
        kept = current_budget(self._memory, A.in_space.device) // 2 if given is None else sketch_bytes(A, room)
        self._room, self._kept = room, kept if room else 0
        fixed = 0 if given is None else _MEANS * A.in_space.dim * A.in_space.dtype.itemsize
        self._at_once = rows_at_once(A, self._goal.most, self._label, memory=self._memory, kept=self._kept + fixed)
        self._sketch: Sketch | None = Sketch(A, adjoint=self._quantity.adjoint) if room else None

    @property
    def products(self) -> int:
        """How many products were spent."""
        return self._products

    def deflated(self) -> Found | None:
        """Deflate from the start, once the sketch is full by `streamed`; None as soon as the exact answer costs no more."""
        best: Found | None = None
        sketch = self._sketch
        if sketch is None:
            return None if self._goal.exact_cost < 2 * FEWEST else self.streamed()
        for _ in track(count(), self._label):
            wanted = min(max(_LEAST, sketch.size // _GROWTH) if sketch.size else FEWEST, self._room - sketch.size)
            if 2 * (sketch.size + wanted) > self._goal.exact_cost:
                return None if self._goal.exact_cost < math.inf else best
            if wanted <= 0:
                return self.better(best, self.streamed())
            if best is None and self._goal.most < 2 * FEWEST:
                return self.streamed()
            if not self._draw(wanted, leave=sketch.size + wanted - len(sketch.images)):
                return best
            best = self._complete(sketch)
            if best.converged:
                return best
            if self._too_slow(sketch, best):
                return None
        return best

    def streamed(self) -> Found | None:
        """The part of a sketch that fits exactly, and of the rest the mean over fresh signs, which are not kept.

        None as soon as the exact answer costs no more. Without room for any sketch, or without products for one and for
        the fewest signs, signs alone.
        """
        goal = self._goal
        room = min(self._capacity, (goal.most - FEWEST) // 2)
        if self._sketch is None and room > 0 and FEWEST + 2 * room <= goal.exact_cost:
            try:
                self._keep_for_sketch(room)
            except MemoryBudgetError:  # signs alone take less
                self._keep_for_sketch(0)
        sketch = self._sketch
        if sketch is None or room < 1:
            return self.auto()
        if not sketch.size:
            self._draw(room)
        if sketch.captured:
            return self._complete(sketch)
        with self._beside():
            self._products += sketch.complete(self._at_once)
        self._moments, wanted, found = Moments(), FEWEST, None
        for _ in track(count(), self._label):
            wanted = min(wanted, self._at_once, goal.most - self._products)
            if wanted <= 0:
                return found
            probes, products = self._multiplied(wanted)
            self._moments.add(self._quantity.beyond(sketch, probes, products))
            self._products += wanted
            del probes, products
            found, taken = self._plain(), self._moments.count
            if found.converged or (taken >= FEWEST and projected(taken, found.error, found.target) > goal.exact_cost):
                return found if found.converged else None
            wanted = next_count(taken, found.error, found.target)
        return found

    def auto(self) -> Found | None:
        """Whichever of plain and deflated is there first; None as soon as the exact answer seems cheaper."""
        wanted, deflated = FEWEST, None
        for _ in track(count(), self._label):
            if not self._draw(wanted):
                break
            plain = self._plain()
            if plain.converged:
                return plain
            if self._sketch is not None and (deflated is not None or self._deflation_wins(self._sketch, plain)):
                if self._sketch.missing > self._goal.most - self._products:
                    break
                deflated = self._complete(self._sketch)
                if deflated.converged:
                    return deflated
            if self._hopeless(plain, deflated):
                return None
            wanted = self._next(plain, deflated)
        plain = self._plain()
        return deflated if deflated is not None and deflated.error < plain.error else plain

    def better(self, found: Found | None, other: Found | None) -> Found | None:
        """The one with the smaller error; None if the last one is, and an exact answer is wanted."""
        if found is None or (other is None and self._goal.exact_cost < math.inf):
            return other
        return found if other is None or (found.error < other.error and not other.converged) else other

    def _draw(self, wanted: int, leave: int = 0) -> bool:
        """Multiply so many more probes, or as many as are left besides `leave`; whether there were any."""
        wanted = min(wanted, self._goal.most - self._products - leave)
        drawn: list[tuple[Tensor, Tensor]] = []
        for start in range(0, wanted, self._at_once):
            probes, products = self._multiplied(min(self._at_once, wanted - start))
            self._moments.add(self._quantity.plain(probes, products))
            if self._sketch is not None:
                drawn.append((probes, products))
        self._products += max(wanted, 0)
        if self._sketch is not None and drawn:
            self._sketch.grow(torch.cat([part[0] for part in drawn]), torch.cat([part[1] for part in drawn]))
        return wanted > 0

    def _multiplied(self, wanted: int) -> tuple[Tensor, Tensor]:
        """So many random signs, and their products."""
        probes = sign_vectors(self._operator.in_space, wanted, self._generator)
        with self._beside():
            products = apply(self._operator, probes)
        self._noise = max(self._noise, self._quantity.noise(products))
        return probes, products

    def _beside(self) -> AbstractContextManager[None]:
        taken = self._kept + block_bytes(self._operator, self._at_once)
        return beside(self._operator, taken, self._memory, kept=0, part=0.5 if self._kept else 1.0)

    def _target(self, size: float) -> float:
        return max(self._goal.atol, self._goal.rtol * size, self._noise)

    def _plain(self) -> Found:
        moments = self._moments
        error = moments.error if moments.count >= FEWEST else math.inf
        return Found(moments.mean, moments.errors, error, self._target(moments.size))

    def _complete(self, sketch: Sketch) -> Found:
        with self._beside():
            self._products += sketch.complete(self._at_once)
        value, errors = self._quantity.deflated(sketch)
        self._errors.append((sketch.size, float(torch.linalg.vector_norm(errors))))
        errors = (errors.square() + self._noise**2 / max(errors.numel(), 1)).sqrt()
        error, size = (float(torch.linalg.vector_norm(part)) for part in (errors, value))
        # the noise that the bar includes must not keep it above a target of the size of the noise
        return Found(value, errors, error, max(self._target(size), 2 * self._noise))

    def _remaining(self, plain: Found) -> float:
        return projected(self._moments.count, plain.error, plain.target) - self._moments.count

    def _deflation_wins(self, sketch: Sketch, plain: Found) -> bool:
        tail = Moments()
        tail.add(self._quantity.tail(sketch))
        good = tail.error <= max(plain.target, _CLEAR_WIN * plain.error)
        return good and sketch.missing <= self._remaining(plain)

    def _hopeless(self, plain: Found, deflated: Found | None) -> bool:
        exact, spent = self._goal.exact_cost, self._products
        if exact == math.inf or self._remaining(plain) + self._moments.count <= exact:
            return spent > exact
        if self._sketch is None:
            return True
        if deflated is not None:
            return self._too_slow(self._sketch, deflated)
        return spent > exact / _WASTE or 2 * spent > exact * explained(self._sketch)

    def _too_slow(self, sketch: Sketch, found: Found) -> bool:
        """Whether deflation will cost more than the exact answer, as far as its course can tell."""
        exact, (size, error) = self._goal.exact_cost, self._errors[-1]
        if exact == math.inf:
            return False
        if 2 * (size + max(_LEAST, size // _GROWTH)) > exact:
            return True
        part = explained(sketch)
        if part < _MOSTLY:  # a spectrum that is flat up to some rank: the other products explain size / rank of each
            return 2 * size > exact * part
        earlier = [pair for pair in self._errors if 2 * pair[0] <= size] or self._errors[:1]
        size_then, error_then = earlier[-1]
        if 2 * size < 3 * size_then or not 0 < found.target < error:
            return False
        pace = math.log(max(error_then / error, 1 + 1e-9)) / (size - size_then)  # kept up: faster than a power law
        return 2 * (size + math.log(error / found.target) / pace) > exact

    def _next(self, plain: Found, deflated: Found | None) -> int:
        wanted = next_count(self._moments.count, plain.error, plain.target)
        sketch = self._sketch
        if sketch is None:
            return wanted
        remaining = self._remaining(plain)
        # by what the other products explain, a flat spectrum needs a sketch of size / explained
        dearer = sketch.missing > remaining or 2 * sketch.size > (remaining + self._moments.count) * explained(sketch)
        if sketch.size + _LEAST > self._room or (deflated is None and dearer):
            self._sketch = None
            return wanted
        return min(wanted, max(_LEAST, sketch.size // _GROWTH))
