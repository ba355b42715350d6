"""Where a parameter Jacobian's rows come from: kept forms, forms captured anew for every quantity, or some of either."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import final

import torch
from torch import Tensor

from hesse.autodiff.roots import Rows
from hesse.core.guard import Guard
from hesse.parameters import contractions
from hesse.parameters.contractions import Use
from hesse.rules.forms import Dense

Take = Callable[[int, str, Use], None]


@contextmanager
def without_autocast() -> Iterator[None]:
    """No autocast inside: it would lower the contractions' matrix products to 16 bits, which belong to no model."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


class Source(ABC):
    """The uses of every parameter, root by root.

    Attributes:
        roots: number of roots (elements of a sample's output; 1 for a loss).
        count: number of samples.
        held_bytes: bytes of the records that are kept, None if there are none.
        is_kept: whether the forms lie in memory, those of a selection too; else they are captured for every visit.
        reads: tensors of the user's that forms read when they are asked for their rows.
    """

    roots: int
    count: int

    held_bytes: int | None = None
    is_kept: bool = False
    reads: tuple[Tensor, ...] = ()

    @property
    @abstractmethod
    def paths(self) -> dict[str, str]:
        """Name -> how the rows of a parameter are represented."""

    @final
    def visit(self, take: Take) -> None:
        """Call ``take(root, name, use)`` for every root and every parameter that is used, outside of any autocast region."""
        with without_autocast():
            self._visit(take)

    @abstractmethod
    def _visit(self, take: Take) -> None:
        """As `visit`."""

    def collect(self) -> list[dict[str, Use]]:
        """All uses at once, by root and name."""
        found: list[dict[str, Use]] = [{} for _ in range(self.roots)]
        self.visit(lambda root, name, use: found[root].__setitem__(name, use))
        return found

    def stacked(self, shapes: dict[str, torch.Size], zero: Tensor) -> dict[str, Use]:
        """The uses of every parameter in all roots, one root after the other.

        Args:
            shapes: name -> shape of every parameter.
            zero: a zero ``[1]`` of the rows' dtype, for roots without a use of a parameter that others have.
        """
        return stacked(self.collect(), shapes, zero)


    @property
    def stacked_bytes(self) -> int:
        """Bytes of the copies that `stacked` makes, now or when their rows are read."""
        return 0 if self.roots == 1 else self.held_bytes or 0


def stacked(roots: list[dict[str, Use]], shapes: dict[str, torch.Size], zero: Tensor) -> dict[str, Use]:
    """As `Source.stacked`, of the uses by root and name."""
    names = [name for name in shapes if any(name in uses for uses in roots)]
    count = next((use.count for uses in roots for use in uses.values()), 0)
    nothing = {name: Dense(zero.expand(count, shapes[name].numel())) for name in names}
    return {name: contractions.stack([uses.get(name, nothing[name]) for uses in roots]) for name in names}


_ASKED = "A parameter Jacobian reads the tensors of its batch (and, for some weights, the parameters)."
_REMEDY = "ask for its quantities first, or make the Jacobian of a copy of the batch"


class Kept(Source):
    """Forms that were captured once and are kept."""

    is_kept = True

    def __init__(self, rows: Rows, shapes: dict[str, torch.Size]) -> None:
        captured = rows.captured or []
        self.roots, self.count = rows.roots, rows.count
        self._paths = dict(captured[0].paths) if captured else {}
        self._uses = [
            {name: contractions.merge(forms, shapes[name]) for name, forms in root.forms.items() if forms} for root in captured
        ]
        every = [use for uses in self._uses for use in uses.values()]
        held = {id(tensor): tensor.nbytes for use in every for tensor in contractions.tensors_in(use)}
        self.held_bytes = sum(held.values())
        self.reads = rows.reads if any(contractions.is_chained(use) for use in every) else ()
        self._guard = Guard([*contractions.tensors_in(every), *self.reads])

    @property
    def paths(self) -> dict[str, str]:
        """Name -> path."""
        return self._paths

    def _visit(self, take: Take) -> None:
        """Hand over what is kept."""
        self._guard.check(_ASKED, _REMEDY)
        for root, uses in enumerate(self._uses):
            for name, use in uses.items():
                take(root, name, use)


class Streamed(Source):
    """Forms that are captured for every quantity, contracted as the backward pass leaves them, and not kept."""

    def __init__(self, rows: Rows, shapes: dict[str, torch.Size]) -> None:
        self.roots, self.count = rows.roots, rows.count
        self._rows, self._shapes, self._guard = rows, shapes, Guard(rows.reads)
        self._paths: dict[str, str] | None = None

    @property
    def paths(self) -> dict[str, str]:
        """Name -> path; costs a backward pass if nothing was asked for before."""
        if self._paths is None:
            self._paths = self._rows.stream(lambda root, name, forms: None, True)
        return self._paths

    def _visit(self, take: Take) -> None:
        """One backward pass a root."""
        self._guard.check(_ASKED, _REMEDY)
        found = self._rows.stream(
            lambda root, name, forms: take(root, name, contractions.merge(forms, self._shapes[name])), False
        )
        self._paths = self._paths or found


class Selected(Source):
    """Some samples, or some parameters, of another source."""

    def __init__(self, source: Source, names: Collection[str], samples: Tensor | None) -> None:
        self.source, self._names, self._samples = source, names, samples
        self.roots, self.count = source.roots, source.count if samples is None else len(samples)
        self.is_kept, self.reads = source.is_kept, source.reads

    @property
    def paths(self) -> dict[str, str]:
        """Name -> path."""
        return {name: path for name, path in self.source.paths.items() if name in self._names}

    def _visit(self, take: Take) -> None:
        """Visit the source, and pick."""

        def pick(root: int, name: str, use: Use) -> None:
            if name in self._names:
                take(root, name, use if self._samples is None else contractions.pick(use, self._samples))

        self.source.visit(pick)


def source_of(rows: Rows, shapes: dict[str, torch.Size]) -> Source:
    """The source of captured rows."""
    return Streamed(rows, shapes) if rows.captured is None else Kept(rows, shapes)
