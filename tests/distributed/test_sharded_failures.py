"""Sharded vectors of which a rank fails, differs, hangs or dies: typed errors on the others, in time, and they go on."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn import functional as F

import hesse
from hesse.core.errors import DistributedError, StructureError
from hesse.distributed import gather, gathered, shard, sharded, sharded_model, spread
from hesse.distributed.sharded_agree import agree, full

from .oracles import gauss_newton
from .ranks import run_ranks, try_ranks
from .test_failures import ALL, Told, not_again, told_by, until_told
from .test_sharded import data_of, flat, fsdp_of, model_of


def made(rank: int) -> tuple[Any, Any, dict[str, Tensor]]:
    """A sharded model, the GGN of the data of both ranks, a sharded vector."""
    model = fsdp_of(model_of())
    G = hesse.ggn(gathered(model), F.cross_entropy, spread([data_of(rank)], timeout=60))
    return model, G, shard(G.in_space.normal(), model)


def going_on(rank: int) -> tuple[dict[str, Told], list[Tensor]]:
    """Rank 1 passes what does not belong there; after each refusal, a product."""
    model, G, v = made(rank)
    local = hesse.ggn(gathered(model), F.cross_entropy, data_of(0))
    S, own = sharded(G, model), sharded(local, model)
    lacking = {name: leaf for name, leaf in v.items() if not rank or name != "last.bias"}
    plain = v | {"last.bias": torch.ones(3, dtype=torch.float64)} if rank else v
    turned = dict(reversed(v.items())) if rank else v

    def failing(_: Any) -> Any:
        raise OSError("the disk is gone")

    asks: dict[str, Callable[[], Any]] = {
        "lacking": lambda: S @ lacking, "lacking, of own data": lambda: own @ lacking,
        "lacking, to gather": lambda: gather(lacking),
        "plain": lambda: S @ plain, "plain, to gather": lambda: gather(plain),
        "turned": lambda: S @ turned, "turned, to gather": lambda: gather(turned),
        "other question": lambda: hesse.trace(G) if rank else S @ v,
        "gather": lambda: gather(v) if rank else S @ v,
        "timeout": lambda: sharded(G, model, timeout="5" if rank else 60) @ v,  # type: ignore[arg-type]
    }  # fmt: skip
    told, values = {}, []
    for name, ask in asks.items():
        told[name] = told_by(ask)
        values.append(flat(gather(S @ v)))
    if rank:
        local.mv = failing  # type: ignore[method-assign]
    told["failing"] = told_by(lambda: own @ v)
    values.append(flat(gather(S @ v)))
    return told, values


def test_a_rank_whose_vector_is_refused_is_told_of_and_all_go_on() -> None:
    bare = model_of()
    x, t = (torch.cat(parts) for parts in zip(data_of(0), data_of(1), strict=True))
    (told, values), (theirs, others) = run_ranks(going_on, 2)
    v = hesse.ggn(bare, F.cross_entropy, (x, t)).in_space.normal()
    for value in (*values, *others):
        torch.testing.assert_close(value, gauss_newton(bare, F.cross_entropy, x, t) @ flat(v))
    name = DistributedError.__name__
    assert {kind for kind, _ in told.values()} == {name}
    for place in ("lacking", "lacking, of own data"):
        assert theirs[place][0] == StructureError.__name__ and "no leaf at 'last.bias'" in theirs[place][1]
        assert "rank 1: StructureError: the vector that ShardedOperator is applied to" in told[place][1]
    assert theirs["turned"][0] == StructureError.__name__ and "rank 1: StructureError" in told["turned"][1]
    for place, leaf in (("lacking, to gather", "last.bias'"), ("plain", "last.bias'"), ("plain, to gather", "last.bias'"),
                        ("turned, to gather", "first.weight' and ")):  # fmt: skip
        for kind, text in (told[place], theirs[place]):
            assert kind == name and f"rank 1 differs from rank 0 at '{leaf}" in text, (place, text)
    for place in ("other question", "gather"):
        for kind, text in (told[place], theirs[place]):
            assert kind == name and "has to ask the same things" in text, (place, text)
    assert theirs["timeout"][0] == StructureError.__name__ and "timeout= is a number of seconds" in told["timeout"][1]
    assert theirs["failing"] == ("OSError", "the disk is gone") and "rank 1: OSError: the disk is gone" in told["failing"][1]


def going_on_two_axes(rank: int) -> tuple[dict[str, Told], list[Tensor]]:
    """Four ranks, whose meshes have groups of their own: rank 3 passes what does not belong there."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    model: Any = fully_shard(model_of(), mesh=mesh)
    G = hesse.ggn(gathered(model), F.cross_entropy, spread([data_of(rank)] if rank < 2 else [], timeout=60))
    v = shard(G.in_space.normal(), model)
    S = sharded(G, model)
    lacking = {name: leaf for name, leaf in v.items() if rank < 3 or name != "last.bias"}
    asks: dict[str, Callable[[], Any]] = {
        "lacking": lambda: S @ lacking, "to gather": lambda: gather(lacking), "all": lambda: S @ {"other": v["last.bias"]},
    }  # fmt: skip
    told, values = {}, []
    for name, ask in asks.items():
        told[name] = told_by(ask)
        values.append(flat(gather(S @ v)))
    return told, values


@pytest.mark.skipif(not ALL, reason="four processes: HESSE_TEST_ALL=1 runs it")
def test_a_rank_that_is_refused_on_a_mesh_of_two_axes() -> None:
    bare = model_of()
    x, t = (torch.cat(parts) for parts in zip(data_of(0), data_of(1), strict=True))
    v = hesse.ggn(bare, F.cross_entropy, (x, t)).in_space.normal()
    for rank, (told, values) in enumerate(run_ranks(going_on_two_axes, 4)):
        for value in values:
            torch.testing.assert_close(value, gauss_newton(bare, F.cross_entropy, x, t) @ flat(v))
        assert told["lacking"][0] == (StructureError if rank == 3 else DistributedError).__name__, told
        assert told["to gather"][0] == DistributedError.__name__, told
        assert told["all"][0] == StructureError.__name__, told


def every_placement(rank: int) -> None:
    """Full values of tensors that lie on two ranks in all ways, even where a rank has nothing."""
    mesh = init_device_mesh("cpu", (2,))
    generator = torch.Generator().manual_seed(1)
    for shape in ((5, 3), (1, 4), (4, 1, 3), (0, 2)):
        for dtype in (torch.float64, torch.bfloat16, torch.complex64, torch.bool):
            whole = (4 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
            for placed in (Replicate(), *(Shard(axis) for axis in range(len(shape)))):
                leaf = distribute_tensor(whole, mesh, [placed], src_data_rank=None)
                found = gather({"a": leaf})["a"]
                assert torch.equal(found, whole) and found.dtype == dtype and found.is_contiguous(), (shape, dtype, placed)
    part = DTensor.from_local(torch.full((3,), 1.0 + rank), mesh, [Partial()])
    assert torch.equal(gather({"a": part})["a"], torch.full((3,), 3.0))
    grad = distribute_tensor(torch.ones(3), mesh, [Shard(0)], src_data_rank=None).requires_grad_()
    assert not gather({"a": 2 * grad})["a"].requires_grad


def test_full_values_of_every_placement() -> None:
    run_ranks(every_placement, 2)


def leaves_early(rank: int, way: str, folder: str) -> None:
    """Rank 1 dies or hangs, before a product, a sum, or between what ranks compare and what they gather."""
    model, G, v = made(rank)
    part = DTensor.from_local(torch.ones(3), init_device_mesh("cpu", (2,)), [Partial()])
    G.link._wire.timeout = 3.0  # from here on; making the operator may take longer
    S = sharded(G, model)
    dist.barrier()
    if rank and way in ("dies", "dies before a sum"):
        os.kill(os.getpid(), signal.SIGKILL)
    if rank and way == "hangs":
        until_told(folder, 1)
    sharded_model.agree = lambda *given: agree(*given[:-1], timeout=60)  # what is compared may take longer
    if rank:
        dist.all_gather_single = lambda *args, **options: until_told(folder, 1)
        gathered(model, timeout=60)
    missed: dict[str, Callable[[], Any]] = {
        "hangs in between": lambda: gathered(model, timeout=3), "dies before a sum": lambda: full(part, "a partial sum"),
    }  # fmt: skip
    try:
        missed.get(way, lambda: S @ v)()
    except DistributedError as error:
        assert isinstance(error.__cause__, RuntimeError)
        assert not any(text in error.found for text in (".cc", "127.0.0.1", "[", "!")), error.found  # not in gloo's words
    (Path(folder) / str(rank)).touch()
    dist.all_reduce = dist.all_gather = dist.all_gather_single = not_again  # what broke stays broken
    asks: list[Callable[[], Any]] = [
        lambda: S @ v, lambda: gather(v), lambda: shard(gather({}) | {"last.bias": torch.ones(3).double()}, model),
        lambda: hesse.trace(G), lambda: gathered(model),
    ]  # fmt: skip
    late = [told_by(ask) for ask in asks]
    assert [kind for kind, _ in late] == ["DistributedError"] * 5, late
    _ = S @ v


@pytest.mark.parametrize("way", ["dies", "hangs", "hangs in between", *(["dies before a sum"] if ALL else [])])
def test_a_rank_that_is_gone_or_silent_is_told_in_time(way: str, tmp_path: Path) -> None:
    first, last = try_ranks(leaves_early, 2, way, str(tmp_path), timeout=240, group_timeout=200)
    assert last.kind == "died" if "dies" in way else isinstance(last.error, TimeoutError), last
    assert isinstance(first.error, DistributedError), first
    assert first.seconds < 100  # neither the group's 200 nor the 120 of the rank that hangs
    if "hangs" in way:
        assert re.search("no sign of life of rank 1;", str(first.error)), first.trace
