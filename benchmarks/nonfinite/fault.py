"""What a planted fault is: a training step that goes wrong at a marked line. And a harmless program: one that does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[[], object]
Make = Callable[[], Step]

CAUSE, FAIR = "# FAULT", "# ALSO"
SEED = 20


@dataclass(frozen=True)
class Fault:
    """A training step whose first harmful NaN or Inf has a known cause.

    The cause is the line of the program whose operation first makes a value non-finite that goes on to a loss, a gradient,
    a parameter or a buffer; of an operation in backward, the line of the forward operation it belongs to; of values that
    were bad before the step, the line that first reads them.

    Attributes:
        name: unique.
        about: what goes wrong, in a line.
        make: gives a fresh step, with a ``# FAULT`` at the end of the line that is the cause; another line that is a fair
            answer too may end in ``# ALSO``.
        phases: where it happens: data, forward, backward, double backward, optimizer. Several where the words do not tell.
        op: a regular expression of the operation, as a reader of the line would call it.
    """

    name: str
    about: str
    make: Make
    phases: tuple[str, ...]
    op: str

    @property
    def file(self) -> str:
        """Where the program stands."""
        return inspect.getfile(self.make)

    @property
    def lines(self) -> tuple[int, ...]:
        """The right answers, the best first."""
        text, first = inspect.getsourcelines(self.make)
        marked = [[first + k for k, line in enumerate(text) if line.rstrip().endswith(mark)] for mark in (CAUSE, FAIR)]
        return (*marked[0], *marked[1])

    def step(self) -> Step:
        """A fresh step, the same at each call."""
        torch.manual_seed(SEED)
        return self.make()


@dataclass(frozen=True)
class Benign:
    """A training step that may hold NaN or Inf for a while, but trains as it should.

    Attributes:
        name: unique.
        about: where the non-finite values are and why they do no harm.
        make: gives a fresh step.
    """

    name: str
    about: str
    make: Make

    def step(self) -> Step:
        """A fresh step, the same at each call."""
        torch.manual_seed(SEED)
        return self.make()


def planted(into: list[Fault]) -> Callable[..., Callable[[Make], Make]]:
    """A decorator ``@fault(about, phase, op)`` that adds its function to the list; phases are joined by ``|``."""

    def fault(about: str, phase: str, op: str) -> Callable[[Make], Make]:
        def add(make: Make) -> Make:
            into.append(Fault(make.__name__, about, make, tuple(phase.split("|")), op))
            return make

        return add

    return fault


def harmless(into: list[Benign]) -> Callable[[str], Callable[[Make], Make]]:
    """A decorator ``@benign(about)`` that adds its function to the list."""

    def benign(about: str) -> Callable[[Make], Make]:
        def add(make: Make) -> Make:
            into.append(Benign(make.__name__, about, make))
            return make

        return add

    return benign


def trained(loss_of: Callable[[], Tensor], params: Iterable[Tensor], rate: float = 1e-2) -> Step:
    """A step of gradient descent on `loss_of`, as anybody writes it."""
    optimizer = torch.optim.SGD(list(params), lr=rate)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss

    return step
