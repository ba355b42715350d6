"""Data sets whose batches lie on several processes: what operators and sums over data ask of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeGuard, TypeVar

from torch import Tensor

from hesse.core.errors import DistributedError
from hesse.core.memory import Budget
from hesse.operators.base import LinearOperator

Tables = dict[Hashable, Tensor]
P = ParamSpec("P")
Result = TypeVar("Result")


class Spread(ABC):
    """A data set of which this process holds a part; made by `hesse.distributed.spread`.

    It does not iterate, so that nothing takes the part for the whole.

    Attributes:
        batches: the part of this process.
    """

    batches: Iterable[Any]

    @abstractmethod
    def asking(self, what: str) -> AbstractContextManager[None]:
        """A question of several steps: what this process raises in it is raised on the others, too.

        Args:
            what: how errors name the question.
        """

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

    @abstractmethod
    def _require_same_model(self, model: Any, tensors: Mapping[str, Tensor]) -> None:
        """Refuse a model that differs: in its tensors, in a module's class or options, or in a function and what it holds.

        Args:
            model: the module, or the function of parameters and inputs.
            tensors: parameters and buffers, by name.
        """

    @abstractmethod
    def take_first(self, what: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the first process, on all of them: for what each has computed by itself, up to rounding.

        Args:
            what: how errors name them.
            tensors: by name, of the same shapes and dtypes on all processes.
        """

    def __iter__(self) -> NoReturn:
        self._refuse("something that would read the batches of this process only")

    def __len__(self) -> int:
        self._refuse("their length, of which this process knows its part only")

    def __getitem__(self, place: Any) -> NoReturn:
        self._refuse(f"the batch at {place!r}, of which each process would take another one")

    def __bool__(self) -> bool:
        return True

    def _refuse(self, found: str) -> NoReturn:
        raise DistributedError(
            "Data that are spread over processes go to operators and sums over data.",
            found,
            "pass the data to ggn, fisher, loss_hessian, kfac, ekfac or average; take `.batches` for the part of this process",
        )


def asked_together(function: Callable[P, Result]) -> Callable[P, Result]:
    """Where data are spread over processes, an error of one process in this function is raised on the others, too.

    Args:
        function: takes data, a `Spread` or others, or an operator, over such data or others.

    Returns:
        the same function, for data of one process unchanged.
    """

    @wraps(function)
    def together(*args: P.args, **options: P.kwargs) -> Result:
        about = next(filter(_is_over_processes, (*args, *options.values())), None)
        if about is None:
            return function(*args, **options)
        with about.asking(function.__name__) if isinstance(about, Spread) else about._asking(function.__name__):
            return function(*args, **options)

    return together


def _is_over_processes(given: Any) -> TypeGuard[Spread | LinearOperator]:
    return isinstance(given, Spread) or (isinstance(given, LinearOperator) and given._over_processes() is not None)
