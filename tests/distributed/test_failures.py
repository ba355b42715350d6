"""Processes that fail, differ, ask different things, hang or die: typed errors on the others, in time, and no wrong sums."""

from __future__ import annotations

import copy
import functools
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import hesse
from hesse.core.errors import DistributedError, StructureError
from hesse.distributed import gather_batches, spread
from hesse.distributed.buffers import Layout
from hesse.distributed.link import Link, Part

from . import cases
from .ranks import run_ranks, try_ranks

Told = tuple[str, str]
ALL = os.environ.get("HESSE_TEST_ALL", "") not in ("", "0")


def told_by(ask: Callable[[], Any]) -> Told:
    try:
        ask()
    except Exception as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def operators(rank: int, seed: int = 0) -> tuple[Any, Any]:
    data = spread(cases.part(rank, 2), timeout=60)
    net = cases.model()
    return hesse.loss_hessian(net, cases.KNOWN, data), hesse.ggn(net, cases.KNOWN, data)


def failing_data(rank: int) -> list[Told]:
    """Bad from the second pass on: on rank 1 alone."""

    class Data:
        passes = 0

        def __iter__(self) -> Any:
            Data.passes += 1
            if rank == 1 and Data.passes > 3:  # two looks at the first batch, one product
                raise OSError("the disk is gone")
            return iter(cases.part(rank, 2))

    G = hesse.average(lambda batch: hesse.ggn(cases.model(), cases.KNOWN, batch), spread(Data(), timeout=60), keep=False)
    v = torch.ones(44, dtype=torch.float64)
    return [told_by(lambda: G.flat @ v), told_by(lambda: G.flat @ v), told_by(lambda: G.mass)]


def other_parameters(rank: int) -> Told:
    net = cases.model()
    with torch.no_grad():
        net[2].bias += 1e-12 * rank  # type: ignore[operator]
    return told_by(lambda: hesse.ggn(net, cases.KNOWN, spread(cases.part(rank, 2), timeout=60)))


def other_modules(rank: int) -> list[Told]:
    """Models that differ on rank 1 in what is no parameter and no buffer, under whichever question."""
    data, net = spread(cases.part(rank, 2), timeout=60), cases.model()
    leaky = torch.nn.Sequential(net[0], torch.nn.LeakyReLU(0.1 * (1 + rank)), net[2])  # type: ignore[index]
    bent = torch.nn.Sequential(net[0], torch.nn.Tanh() if rank else torch.nn.Sigmoid(), net[2])  # type: ignore[index]
    dropping = torch.nn.Sequential(*net, torch.nn.Dropout(0.5))  # type: ignore[arg-type]
    dropping[3].train(bool(rank))
    f, params = hesse.functional(net)
    factor = 1.0 + rank
    asked: list[Callable[[], Any]] = [
        lambda: hesse.ggn(leaky, cases.KNOWN, data), lambda: hesse.kfac(bent, cases.KNOWN, data),
        lambda: hesse.fisher(dropping, cases.KNOWN, data), lambda: hesse.loss_hessian((lambda p, x: factor * f(p, x), params),
                                                                                      cases.KNOWN, data),
    ]  # fmt: skip
    return [told_by(ask) for ask in asked]


def alike_modules(rank: int) -> list[torch.Tensor]:
    """Models whose differences belong to one process: attributes, a model without numbers, data beside it."""
    data, net, v = spread(cases.part(rank, 2), timeout=60), cases.model(), torch.ones(44, dtype=torch.float64)
    net.rank, net.home = rank, f"cuda:{rank}"  # type: ignore[assignment]
    params = {name: leaf.detach() for name, leaf in net.named_parameters()}
    bare, mine = copy.deepcopy(net).to("meta"), torch.full((2 + rank, 3), float(rank))

    def f(p: Any, x: torch.Tensor) -> torch.Tensor:
        assert mine.shape[0] == 2 + rank
        return torch.func.functional_call(bare, p, (x,))

    return [hesse.ggn(model, cases.KNOWN, data).flat @ v for model in (net, (f, params))]


def test_models_that_differ_in_more_than_numbers_are_told_apart() -> None:
    places = [*(f"{name} (its class, mode or an option)" for name in "113"), "factor"]
    for found in run_ranks(other_modules, 2):
        for (kind, text), place in zip(found, places, strict=True):
            assert kind == DistributedError.__name__ and f"rank 1 differs from rank 0 at '{place}'" in text, (place, text)
    expected = cases.full_ggn(cases.model(), cases.whole()) @ torch.ones(44, dtype=torch.float64)
    for values in run_ranks(alike_modules, 2):
        for value in values:
            torch.testing.assert_close(value, expected)


def other_buffers(rank: int) -> Told:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double().eval()
    torch.nn.init.ones_(net[0].weight)
    net[1].running_mean += rank  # type: ignore[operator]
    return told_by(lambda: hesse.kfac(net, cases.KNOWN, spread(cases.part(rank, 2), timeout=60)))


def other_seeds(rank: int) -> Told:
    data, source = spread(cases.part(rank, 2), timeout=60), torch.Generator().manual_seed(rank)
    return told_by(lambda: hesse.fisher(cases.model(), cases.KNOWN, data, kind="sampled", generator=source))


def other_probes(rank: int) -> Told:
    H, _ = operators(rank)
    return told_by(lambda: hesse.trace(H, method="hutchinson", rtol=0.5, generator=torch.Generator().manual_seed(rank)))


def other_questions(rank: int) -> list[Told]:
    H, G = operators(rank)
    v = torch.ones(44, dtype=torch.float64)
    first = told_by(lambda: hesse.diagonal(G) if rank else H.flat @ v)
    second = told_by(lambda: (H if rank else G).flat @ v)
    third = told_by(lambda: G.mm(G.in_space.normal(2 + rank)))
    return [first, second, third, told_by(lambda: G.flat @ v)]


def other_models(rank: int) -> Told:
    net = torch.nn.Linear(3, 4, bias=bool(rank)).double()
    return told_by(
        lambda: hesse.average(lambda batch: hesse.ggn(net, cases.KNOWN, batch), spread(cases.part(rank, 2), timeout=60))
    )


def other_options(rank: int) -> list[Told]:
    data, net = spread(cases.part(rank, 2), timeout=60), cases.model()
    weights = torch.arange(1.0, 5.0, dtype=torch.float64) ** (1 + rank)
    weighted = torch.nn.CrossEntropyLoss(weight=weights)
    reduced = torch.nn.CrossEntropyLoss(reduction=("mean", "sum")[rank])
    kind, approximation = ("empirical", "expected")[rank], ("expand", "reduce")[rank]
    source = torch.Generator().manual_seed(0)
    asked: list[Callable[[], Any]] = [
        lambda: hesse.ggn(net, weighted, data),
        lambda: hesse.loss_hessian(net, torch.nn.CrossEntropyLoss(ignore_index=rank), data),
        lambda: hesse.kfac(net, reduced, data),
        lambda: hesse.ekfac(net, reduced, data),
        lambda: hesse.fisher(net, cases.KNOWN, data, kind=kind),  # type: ignore[arg-type]
        lambda: hesse.fisher(net, cases.KNOWN, data, kind="sampled", samples=1 + rank, generator=source),
        lambda: hesse.kfac(net, cases.KNOWN, data, kind=kind),  # type: ignore[arg-type]
        lambda: hesse.ekfac(net, cases.KNOWN, data, approximation=approximation),  # type: ignore[arg-type]
    ]
    return [told_by(ask) for ask in asked]


def wrong_size(rank: int) -> Told:
    link = Link(None, 30)
    layout = Layout(((3,),), (torch.float64,), torch.device("cpu"))
    return told_by(lambda: link.total("three numbers", layout, lambda: Part([torch.ones(3 + rank)])))


def everything(rank: int) -> dict[str, Any]:
    differing = (other_parameters, other_buffers, other_seeds, other_probes, other_questions, other_models, other_options)
    return {ask.__name__: ask(rank) for ask in (failing_data, *differing, wrong_size)}


def test_failures_and_differences_are_told_on_all_processes() -> None:
    zero, one = run_ranks(everything, 2)
    name = DistributedError.__name__
    assert zero["failing_data"][0] == one["failing_data"][0] == ("nothing", "")
    assert zero["failing_data"][1][0] == name and "rank 1: OSError: the disk is gone" in zero["failing_data"][1][1]
    assert one["failing_data"][1] == ("OSError", "the disk is gone")
    for told in (zero, one):
        expected = {
            "other_parameters": "be the same on all 2 processes.\n  found: rank 1 differs from rank 0 at '2.bias'\n",
            "other_buffers": "at '1.running_mean'\n",
            "other_seeds": "seed that the generator gives has to be the same",
            "other_probes": "vectors with loss_hessian",
            "other_models": "bias [4] float64",
        }
        for ask, text in expected.items():
            assert told[ask][0] == name and text in told[ask][1], (ask, told[ask])
        places = ["loss", "loss", "loss", "loss", "kind", "samples", "kind", "approximation"]
        for (kind, text), place in zip(told["other_options"], places, strict=True):
            assert kind == name and f"differs from rank 0 at '{place}'" in text, (place, text)
        kinds = [kind for kind, _ in told["other_questions"]]
        assert kinds == [name] * 3 + ["nothing"]  # and the processes go on together
    assert "rank 1: Whether the diagonal is known of ggn" in zero["other_questions"][0][1]
    assert "rank 0: A product with loss_hessian" in one["other_questions"][0][1]
    assert "A product with ggn" in one["other_questions"][1][1]
    assert zero["wrong_size"][0] == name and "rank 1: StructureError: What is summed" in zero["wrong_size"][1]


def other_operators(rank: int) -> list[list[Told]]:
    """Two operators of one kind and layout on the same data: each rank asks another one; then both ask the first."""
    x = torch.ones(2, 3, dtype=torch.float64)
    wide = [torch.nn.Linear(3, 400).double() for _ in range(2)]
    for place, net in enumerate(wide):
        torch.nn.init.constant_(net.weight, place)
        torch.nn.init.zeros_(net.bias)
    data, targets = spread(cases.part(rank, 2), timeout=60), spread([(x, torch.zeros(2, 400).double())], timeout=60)
    nets = [cases.model(), cases.model()]
    torch.nn.init.ones_(nets[1][0].weight)  # type: ignore[index]
    pairs: list[list[Any]] = [
        [hesse.ggn(net, cases.KNOWN, data) for net in nets],
        [hesse.average(lambda batch, net=net: hesse.ggn(net, cases.KNOWN, batch), data) for net in nets],  # type: ignore[misc]
        [hesse.ggn(net, torch.nn.MSELoss(), targets) for net in wide],
    ]
    found = []
    for pair in pairs:
        v = torch.ones(pair[0].shape[0], dtype=torch.float64)
        for _ in range(3):  # the wide ones' product is expected a fourth time
            _ = pair[0].flat @ v
        asks: list[Callable[[Any], Any]] = [
            lambda A, v=v: A.flat @ v, lambda A: A.mm(A.in_space.normal(2, generator=torch.Generator().manual_seed(0))),
            hesse.diagonal, hesse.trace, lambda A: A.T.flat @ torch.ones(A.shape[0], dtype=torch.float64),
        ]  # type: ignore[list-item] # fmt: skip
        found.append([told_by(lambda ask=ask, pair=pair: ask(pair[rank])) for ask in asks])  # type: ignore[misc]
        assert torch.equal(pair[0].flat @ v, pair[0].flat @ v)
    return found


def test_operators_of_one_kind_are_told_apart() -> None:
    for pairs in run_ranks(other_operators, 2):
        for found in pairs:
            for kind, text in found:
                assert kind == DistributedError.__name__ and "of another operator: rank 0: call" in text, text
                places = [part.partition("\n")[0].partition(";")[0] for part in text.split("operator of question ")[1:]]
                assert len(places) == 2 and places[0] != places[1]


def unlike_makers(rank: int) -> dict[str, Callable[[Any], Any]]:
    """Functions of one shape that make operators of one space: each is another one on rank 1."""
    nets, loss = [cases.model(), cases.model()], cases.KNOWN
    torch.nn.init.ones_(nets[1][0].weight)  # type: ignore[index]
    net, mine, chosen = nets[0], nets[rank], [nets[rank]]
    kind, factor = ("empirical", "expected")[rank], (2.0, 3.0)[rank]
    weights = torch.nn.CrossEntropyLoss(torch.ones(4, dtype=torch.float64) * (1 + rank))
    scale = torch.ones(4, dtype=torch.float64, requires_grad=True) * (1 + rank)
    wide = torch.ones(2, 3 + rank)

    def inner(batch: Any) -> Any:
        return hesse.ggn(mine, loss, batch)

    def weighted(batch: Any) -> Any:
        return hesse.ggn(net, weights, batch)

    def of_kind(kind: Any, batch: Any) -> Any:
        return hesse.fisher(net, loss, batch, kind=kind)

    return {
        "()": (lambda batch: hesse.ggn(net, loss, batch)) if rank else (lambda batch: hesse.fisher(net, loss, batch)),
        "mine": lambda batch: hesse.ggn(mine, loss, batch),
        "kind": lambda batch, kind=kind: hesse.fisher(net, loss, batch, kind=kind),  # type: ignore[misc]
        "0": functools.partial(of_kind, kind),
        "inner.mine": lambda batch: inner(batch),
        "weighted.weights": lambda batch: weighted(batch),
        "factor": lambda batch: factor * hesse.ggn(net, loss, batch),
        "scale": lambda batch: scale[0].detach() * hesse.ggn(net, loss, batch),
        "wide": lambda batch: wide.shape[1] * hesse.ggn(net, loss, batch),
        "place": lambda batch, place=rank: (1.0 + place) * hesse.ggn(net, loss, batch),  # type: ignore[misc]
        "name": functools.partial(lambda batch, name: hesse.ggn(nets[name], loss, batch), name=rank),
        "first operator reads": lambda batch: hesse.ggn(chosen[0], loss, batch),  # the list is not compared
    }


class Owner:
    """Holds a model and what belongs to one process."""

    def __init__(self, rank: int) -> None:
        self.rank, self.rows, self.net = rank, torch.full((1 + rank, 2 + rank), float(rank)), cases.model()

    def make(self, batch: Any) -> Any:
        return hesse.ggn(self.net, cases.KNOWN, batch)

    __call__ = make


def like_makers(rank: int, mine: list[cases.Batch]) -> list[Callable[[Any], Any]]:
    """Functions that hold what belongs to one process, and make the same of every batch."""
    net, loss, device, mine_too = cases.model(), cases.KNOWN, f"cuda:{rank}", {"data": mine}
    is_main, rows, pairs, late, count = rank == 0, torch.full((1 + rank, 3), float(rank)), tuple(mine), None, 0

    def at(place: Any, batch: Any) -> Any:
        assert place is not None
        return hesse.ggn(net, loss, batch)

    def made_late(batch: Any) -> Any:
        nonlocal late, count
        late, count = cases.model() if late is None else late, count + 1
        return hesse.ggn(late, loss, batch)

    return [
        lambda batch: at(device, batch), lambda batch: at(rank, batch), lambda batch: at(mine, batch),
        lambda batch: at(mine_too["data"], batch), functools.partial(at, mine), lambda batch: at(is_main, batch),
        lambda batch: at(rows, batch), lambda batch: at(pairs, batch), made_late, Owner(rank), Owner(rank).make,
    ]  # fmt: skip


def makers(rank: int, ranks: int) -> tuple[dict[str, Told], list[torch.Tensor]]:
    mine = cases.part(rank, ranks)
    data, v = spread(mine, timeout=60), torch.ones(44, dtype=torch.float64)
    last = int(rank == ranks - 1)
    told = {name: told_by(lambda make=make: hesse.average(make, data)) for name, make in unlike_makers(last).items()}  # type: ignore[misc]
    values = [hesse.average(make, data).flat @ v for make in like_makers(rank, mine)]
    everything = spread([] if last else cases.batches()[: 5 if rank == 0 else 0], timeout=60)  # a shard without batches
    return told, [*values, *(hesse.average(make, everything).flat @ v for make in like_makers(rank, mine))]


@pytest.mark.parametrize("ranks", [2, *([3, 4] if ALL else [])])
def test_functions_that_make_operators_are_told_apart(ranks: int) -> None:
    expected = cases.full_ggn(cases.model(), cases.whole()) @ torch.ones(44, dtype=torch.float64)
    for told, values in run_ranks(makers, ranks, ranks):
        for place, (kind, text) in told.items():
            assert kind == DistributedError.__name__, (place, kind, text)
            assert place in text and f"rank {ranks - 1} " in text, (place, text)
            assert "reads" in place or f"at '{place}'; rank 0: " in text, (place, text)
        for value in values:
            torch.testing.assert_close(value, expected)


def out_of_step(rank: int) -> dict[str, Any]:
    """Rank 1 alone names a bad group, spreads data that it does not use, is interrupted; both ask from two threads."""
    mine, net, v = cases.part(rank, 2), cases.model(), torch.ones(44, dtype=torch.float64)
    found: dict[str, Any] = {}

    def fresh() -> torch.Tensor:
        return hesse.ggn(net, cases.KNOWN, spread(mine, timeout=60)).flat @ v

    bad: Any = "x" if rank else None
    found["group"] = told_by(lambda: hesse.ggn(net, cases.KNOWN, spread(mine, group=bad, timeout=60))), fresh()
    if rank:
        spread(mine)
    found["extra"] = told_by(fresh), fresh()
    link, layout = Link(None, 30), Layout(((2000,),), (torch.float32,), torch.device("cpu"))
    told = []
    for place in range(6):

        def work(place: int = place) -> Part:
            if rank and place == 3:
                raise KeyboardInterrupt
            return Part([torch.ones(2000)], given=7)

        try:
            told.append(told_by(lambda work=work: link.total("numbers", layout, work)))  # type: ignore[misc]
        except KeyboardInterrupt:
            told.append(("KeyboardInterrupt", ""))
    found["interrupt"] = told, fresh()
    told = []
    for place in range(3):
        try:
            with link.asking("a question"):
                if rank and place == 1:
                    raise KeyboardInterrupt
                told.append(told_by(lambda: link.exchange("first", lambda: rank)))
        except KeyboardInterrupt:
            told.append(("KeyboardInterrupt", ""))
    found["early"] = told, fresh()
    groups: tuple[Any, ...] = (None, dist.new_group([0, 1]))
    G, H = (hesse.ggn(net, cases.KNOWN, spread(mine, group=one, timeout=60)) for one in groups)
    is_open, may_end = threading.Event(), threading.Event()

    def slow() -> int:
        is_open.set()
        assert may_end.wait(30)
        return rank

    values: list[Any] = []
    thread = threading.Thread(target=lambda: values.append(link.exchange("slowly", slow)))
    thread.start()
    assert is_open.wait(30)
    asks: list[Callable[[], Any]] = [
        lambda: G.flat @ v, lambda: hesse.kfac(net, cases.KNOWN, spread(mine)), lambda: G.mass, lambda: gather_batches(mine),
    ]  # fmt: skip
    refused = [told_by(ask) for ask in asks]
    beside = H.flat @ v  # another group
    may_end.set()
    thread.join()
    found["threads"] = refused, values, beside, fresh()
    return found


def test_processes_out_of_step_and_threads_are_told_and_go_on() -> None:
    zero, one = run_ranks(out_of_step, 2)
    name = DistributedError.__name__
    expected = cases.full_ggn(cases.model(), cases.whole()) @ torch.ones(44, dtype=torch.float64)
    for found in (zero, one):
        for value in (found["group"][1], found["extra"][1], found["interrupt"][1], found["early"][1], *found["threads"][2:]):
            torch.testing.assert_close(value, expected)
        kind, text = found["extra"][0]
        assert kind == name and "rank 0: call 3 of 3 of spread" in text and "rank 1: call 4 of 4 of spread" in text
        assert all(kind == name and "another thread's question" in text for kind, text in found["threads"][0])
        assert len(found["threads"][0]) == 4 and found["threads"][1] == [[0, 1]]
    assert one["group"][0][0] == StructureError.__name__
    assert zero["group"][0][0] == name and "rank 1: StructureError: group= is a process group" in zero["group"][0][1]
    assert [kind for kind, _ in one["interrupt"][0]] == ["nothing"] * 3 + ["KeyboardInterrupt"] + ["nothing"] * 2
    assert [kind for kind, _ in zero["interrupt"][0]] == ["nothing"] * 3 + [name] + ["nothing"] * 2
    assert "at different places in the order" in zero["interrupt"][0][3][1]
    assert [kind for kind, _ in one["early"][0]] == ["nothing", "KeyboardInterrupt", "nothing"]
    assert [kind for kind, _ in zero["early"][0]] == ["nothing", name, "nothing"]
    assert "rank 1: KeyboardInterrupt in a question" in zero["early"][0][1][1]


def leaves_early(rank: int, way: str, ranks: int, folder: str) -> None:
    data, other = (spread(cases.batches()[:1], timeout=60) for _ in range(2))
    G, H = (hesse.ggn(cases.model(), cases.KNOWN, one) for one in (data, other))
    v = torch.ones(44, dtype=torch.float64)
    _ = G.flat @ v
    data.link._wire.timeout = 5.0  # of the exchange that is missed alone: making the operators may take longer
    if rank == ranks - 1:
        if way == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        until_told(folder, ranks - 1)
    try:
        G.flat @ v
    except DistributedError as error:
        assert isinstance(error.__cause__, RuntimeError) and str(error.__cause__)
        assert not any(text in error.found for text in (".cc", "127.0.0.1", "[", "!")), error.found  # not in gloo's words
    (Path(folder) / str(rank)).touch()
    dist.all_reduce = dist.all_gather = not_again  # what broke stays broken: nobody waits twice, with whatever data
    late = [told_by(ask) for ask in (lambda: H.flat @ v, lambda: hesse.kfac(cases.model(), cases.KNOWN, other),
                                     lambda: gather_batches([]), lambda: spread([], timeout="5"))]  # type: ignore[arg-type]
    assert [kind for kind, _ in late] == ["DistributedError"] * 3 + ["StructureError"]
    G.flat @ v


def until_told(folder: str, count: int) -> None:
    """Hang until so many others have been told."""
    end = time.monotonic() + 120
    while len(list(Path(folder).iterdir())) < count and time.monotonic() < end:
        time.sleep(0.05)
    raise TimeoutError("woke up")


def not_again(*args: Any, **options: Any) -> Any:
    raise AssertionError("another exchange over a group that broke")


@pytest.mark.parametrize("way", ["dies", "hangs"])
@pytest.mark.parametrize("ranks", [2, *([3, 4] if ALL else [])])
def test_a_process_that_is_gone_or_silent_is_told_in_time(way: str, ranks: int, tmp_path: Path) -> None:
    *others, last = try_ranks(leaves_early, ranks, way, ranks, str(tmp_path), timeout=240, group_timeout=200)
    assert last.kind == "died" if way == "dies" else isinstance(last.error, TimeoutError)
    for outcome in others:
        assert outcome.kind == "error", outcome
        assert isinstance(outcome.error, DistributedError), outcome.trace
        assert outcome.seconds < 100  # neither the group's 200 nor the 120 of the process that hangs
        if way == "hangs":  # those that come late to the exchange are not heard of, either
            assert re.search(rf"no sign of life of rank (\d, )*{ranks - 1};", str(outcome.error)), outcome.trace


def test_processes_without_a_group_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DistributedError, match=r"2 processes \(WORLD_SIZE\) and no group"):
        spread(cases.batches())
    monkeypatch.delenv("WORLD_SIZE")
    timeouts: list[Any] = [0, -1, "5", True, math.inf, math.nan, 1e-4, 1e12, None, torch.tensor(3.0), 1j]
    for timeout in timeouts:
        with pytest.raises(StructureError, match=r"timeout= is a number of seconds, from 0.001 to 1e\+09"):
            spread(cases.batches(), timeout=timeout)
    for timeout in (1e-3, 1, 1e9, np.float32(2.5)):
        assert spread(cases.batches(), timeout=timeout).link.ranks == 1  # type: ignore[arg-type]
