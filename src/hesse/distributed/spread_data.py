"""Data sets whose batches lie on several processes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesse.core.errors import DataError, DistributedError
from hesse.core.memory import Budget
from hesse.distributed.average import OverProcesses
from hesse.distributed.buffers import Layout
from hesse.distributed.differences import hash_text
from hesse.distributed.facts import Facts, content_hash, device_here, require_equal_reads
from hesse.distributed.link import Link, Part
from hesse.distributed.makers import Maker, require_one_maker
from hesse.distributed.modules import module_options
from hesse.operators import Average, LinearOperator, Spread
from hesse.operators.data_set import refuse_one_shot

_END = object()
Tables = dict[Hashable, Tensor]


def spread(batches: Iterable[Any], *, group: dist.ProcessGroup | None = None, timeout: float = 300.0) -> SpreadData:
    """A data set that is spread over the processes of a group, each of which holds some of its batches.

    It is what `hesse.ggn`, `hesse.fisher`, `hesse.loss_hessian`, `hesse.kfac`, `hesse.ekfac` and `hesse.average` take as data::

        data = hesse.distributed.spread(my_batches)
        G = hesse.ggn(model, loss, data)
        hesse.trace(G, rtol=0.01)

    Every process asks the same questions in the same order; every process gets the same answer, that of all data together,
    as one process would compute it, up to rounding. What only one process asks for hangs until the timeout, and is refused.

    Args:
        batches: of this process, an iterable that can be read again and again; may be empty on some processes. That no batch
            is on two processes cannot be known here: cut the data by rank, as `torch.utils.data.DistributedSampler` does
            (with ``drop_last=True``: without it, samples are repeated until all parts are of one length).
        group: of `torch.distributed`; by default all processes. Without any (no `torchrun`), this process alone.
        timeout: seconds to wait for the others at each exchange: longer than the slowest process needs more than the fastest;
            0.001 to 10^9.

    Returns:
        the data set; it does not iterate, so that nothing takes a part for the whole. `batches` is the part.

    Raises:
        DistributedError: several processes were started and have no group yet, or the group was destroyed. OneShotDataError: a
        generator. DataError: no iterable. StructureError: another timeout, no process group. What one process raises here, the
        others are told at its next question.

    Cost: a product: one all-reduce of its numbers (see `hesse.distributed.count_traffic`).
    """
    link = Link(group, timeout)
    with link.noting():
        return SpreadData(readable(batches), link)


def readable(batches: Any) -> Iterable[Any]:
    """The batches of a process, which can be read again and again.

    Raises:
        DataError: no iterable, or data that are spread already. OneShotDataError: a generator.
    """
    asked, remedy = "Data that are spread over processes are an iterable of batches on each.", "pass a list or a DataLoader"
    if isinstance(batches, Spread):
        raise DataError(asked, f"{batches!r}, which is spread already", "pass it to ggn, fisher, ... as it is")
    if isinstance(batches, (Tensor, str, bytes)) or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise DataError(asked, f"a {type(batches).__name__}", remedy)
    refuse_one_shot(batches, "Data are read once for every product.")
    return batches


class SpreadData(Spread):
    """A data set of which this process holds a part; see `spread`.

    Attributes:
        batches: the part of this process.
        link: to the others.
    """

    def __init__(self, batches: Iterable[Any], link: Link) -> None:
        self.batches, self.link = batches, link

    @property
    def rank(self) -> int:
        """This process's place."""
        return self.link.rank

    @property
    def ranks(self) -> int:
        """How many processes there are."""
        return self.link.ranks

    def asking(self, what: str) -> AbstractContextManager[None]:
        """A question of several steps: what this process raises in it is raised on the others, too."""
        return self.link.asking(what)

    def average(
        self,
        make: Callable[[Any], LinearOperator],
        *,
        additive: bool | None = None,
        data_check: bool = True,
        keep: bool = True,
        memory: Budget | None = None,
        name: str = "",
    ) -> OverProcesses:
        """The average over the batches of all processes.

        Args:
            make, additive, data_check, keep, memory: as for `hesse.average`.
            name: what made it, for errors, where model, loss and options are known to be the same on all processes; without
                one, `make` and what its first operator reads are compared.

        Raises:
            DataError: no process has a batch. DistributedError: operators, the tensors that they read, or the functions that
            make them (their code and what it closes over, but for data and other objects) are not alike.
        """
        local: list[Average] = []
        read: list[Any] = []
        is_named, name = bool(name), name or getattr(make, "__qualname__", type(make).__name__).partition(".")[0]

        def noting(batch: Any) -> LinearOperator:
            operator = make(batch)
            if not local:
                read[:] = getattr(operator, "reads", ())
            return operator

        def facts() -> tuple[Facts | None, Maker | None]:
            maker = None if is_named else Maker.of(make, self.rank)  # before the first call, which may change what it holds
            if not self._is_empty():
                ask = make if is_named else noting
                local.append(Average(ask, self.batches, additive=additive, data_check=data_check, keep=keep, memory=memory))
            reads = tuple(read)
            read.clear()
            return Facts.of(local[0], reads) if local else None, maker

        answers = self.link.exchange(name, facts)
        told = [one for one, _ in answers if one is not None]
        if not told:
            raise DataError("An operator over data needs data.", f"no batch on any of {self.ranks} processes", "pass batches")
        first = told[0]
        odd = next((one for one in told if str(one) != str(first)), None)
        if odd is not None:
            raise DistributedError(
                "The batches of all processes need operators of one kind.",
                f"{odd} beside {first}",
                "use the same model, loss and parameters on all processes",
            )
        asked = f"An average over {self.ranks} processes takes operators that one function makes on all of them."
        require_one_maker([maker for _, maker in answers], asked)
        require_equal_reads([one for one, _ in answers])
        return OverProcesses(self.link.of_operator(), local[0] if local else first, name)

    def add_up(self, what: str, work: Callable[[], Tables]) -> Tables:
        """Tables of tensors added up over the processes, key by key; a key that a process lacks is zero there.

        Raises:
            DistributedError: another process failed, or has a tensor of another shape. DataError: no process has any data.
        """
        own: Tables = {}

        def layout() -> dict[Hashable, tuple[tuple[int, ...], torch.dtype, str]]:
            own.update(work())
            return {key: (tuple(leaf.shape), leaf.dtype, leaf.device.type) for key, leaf in own.items()}

        told = self.link.exchange(what, layout)
        merged: dict[Hashable, tuple[tuple[int, ...], torch.dtype, str]] = {}
        for rank, one in enumerate(told):
            for key, form in one.items():
                if merged.setdefault(key, form) != form:
                    found = f"{key}: {form[0]} {form[1]} on rank {rank}, {merged[key][0]} {merged[key][1]} before"
                    raise DistributedError(f"{what} over processes.", found, "use the same model on all processes")
        device = device_here({kind for _, _, kind in merged.values()})
        total = Layout(tuple(s for s, _, _ in merged.values()), tuple(d for _, d, _ in merged.values()), device)
        zeros = (own.get(key, torch.zeros(shape, dtype=dtype, device=device)) for key, (shape, dtype, _) in merged.items())
        sums, _ = self.link.total(what, total, lambda: Part(list(zeros)))
        return {key: leaf.to(form[1]) for (key, form), leaf in zip(merged.items(), sums, strict=True)}

    def require_same(self, what: str, tensors: Mapping[str, Tensor]) -> None:
        """Refuse tensors that are not equal on all processes, bit by bit.

        Raises:
            DistributedError: names the first that differs, and the ranks.

        Cost: one pass over their bytes, and one exchange of a few numbers.
        """
        self.link.check_same(what, lambda: {name: content_hash(tensor) for name, tensor in tensors.items()})

    def _require_same_model(self, model: Any, tensors: Mapping[str, Tensor]) -> None:
        """Refuse a model that differs: in its tensors, in a module's class or options, or in a function and what it holds.

        Raises:
            DistributedError: names the first that differs, and the ranks.

        Cost: as `require_same`; for a function, an exchange of its description besides.
        """

        def hashes() -> dict[str, int]:
            found = {name: content_hash(tensor) for name, tensor in tensors.items()}
            for name, text in (module_options(model) if isinstance(model, nn.Module) else {}).items():
                found[f"{name or 'the model'} (its class, mode or an option)"] = hash_text(text)
            return found

        self.link.check_same("The model", hashes)
        if not isinstance(model, nn.Module):
            told = self.link.exchange("The function of the model", lambda: Maker.of(model, self.rank))
            require_one_maker(told, f"A model (f, params) has to be the same on all {self.ranks} processes.")

    def take_first(self, what: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the first process, on all of them: for what each has computed by itself, up to rounding.

        Raises:
            DistributedError: other names, shapes or dtypes than those of the first process.

        Cost: one pass over their bytes and a gather of a few numbers a tensor; where they differ, an all-reduce of all of them.
        """
        named = dict(tensors)
        forms = {name: (tuple(leaf.shape), str(leaf.dtype), leaf.device.type) for name, leaf in named.items()}
        told = self.link.exchange(what, lambda: (forms, {name: content_hash(leaf) for name, leaf in named.items()}))
        for rank, (other, _) in enumerate(told):
            if other != told[0][0]:
                found = f"other names, shapes or dtypes on rank {rank} than on rank 0"
                raise DistributedError(f"{what}, over {len(told)} processes.", found, "use the same model on all processes")
        if all(hashes == told[0][1] for _, hashes in told):
            return named
        layout = Layout.of(list(named.values()))
        sums, _ = self.link.total(what, layout, lambda: Part(list(named.values()) if self.rank == 0 else None))
        return {name: leaf.to(named[name].dtype) for name, leaf in zip(named, sums, strict=True)}

    def _is_empty(self) -> bool:
        if hasattr(self.batches, "__len__"):
            return len(self.batches) == 0  # pyright: ignore[reportArgumentType]
        return next(iter(self.batches), _END) is _END

    def __repr__(self) -> str:
        return f"SpreadData(rank {self.rank} of {self.ranks}: {type(self.batches).__name__})"
