"""Data sets whose batches lie on several processes: what operators and sums over data ask of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NoReturn

from torch import Tensor

from hesse.core.errors import DistributedError
from hesse.core.memory import Budget
from hesse.operators.base import LinearOperator

Tables = dict[Hashable, Tensor]


class Spread(ABC):
    """A data set of which this process holds a part; made by `hesse.distributed.spread`.

    It does not iterate, so that nothing takes the part for the whole.

    Attributes:
        batches: the part of this process.
    """

    batches: Iterable[Any]

    @abstractmethod
    def average(
        self,
        make: Callable[[Any], LinearOperator],
        *,
        additive: bool | None = None,
        data_check: bool = True,
        keep: bool = True,
        memory: Budget | None = None,
        name: str = "",
    ) -> LinearOperator:
        """The average over the batches of all processes.

        Args:
            make, additive, data_check, keep, memory: as for `hesse.average`.
            name: how errors call it; the same on all processes.
        """

    @abstractmethod
    def add_up(self, what: str, work: Callable[[], Tables]) -> Tables:
        """Tables of tensors added up over the processes, key by key; a key that a process lacks is zero there.

        Args:
            what: how errors name it.
            work: makes those of this process; what it raises is raised on every process.
        """

    @abstractmethod
    def require_same(self, what: str, tensors: Mapping[str, Tensor]) -> None:
        """Refuse tensors that are not equal on all processes, bit by bit."""

    def __iter__(self) -> NoReturn:
        raise DistributedError(
            "Data that are spread over processes go to operators and sums over data.",
            "something that would read the batches of this process only",
            "pass the data to ggn, fisher, loss_hessian, kfac, ekfac or average; take `.batches` for the part of this process",
        )
