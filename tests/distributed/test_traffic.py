"""Bytes are counted as the buffers' sizes say, and the model of time follows the ring."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import torch
from torch import Tensor

import hesse
from hesse.core.errors import DistributedError, StructureError
from hesse.distributed import count_traffic, expected_seconds, spread
from hesse.distributed.buffers import Layout, pack, unpack
from hesse.distributed.link import Link, Part
from hesse.distributed.repeats import all_alike, tail

from . import cases
from .ranks import run_ranks

ALL = os.environ.get("HESSE_TEST_ALL", "") not in ("", "0")


def counted(rank: int) -> list[tuple[int, float, dict[str, tuple[int, float]]]]:
    small, large = cases.model(), torch.nn.Linear(3, 400).double()
    torch.nn.init.ones_(large.weight), torch.nn.init.zeros_(large.bias)
    G = hesse.ggn(small, cases.KNOWN, spread(cases.part(rank, 2)))
    x, loss = torch.ones(2, 3, dtype=torch.float64), torch.nn.MSELoss()
    big = hesse.ggn(large, loss, spread([(x, torch.zeros(2, 400, dtype=torch.float64))]))
    found = []
    for ask in (
        lambda: G @ G.in_space.normal(), lambda: G.mm(G.in_space.normal(5)), lambda: big @ big.in_space.normal(),
        lambda: big.mm(big.in_space.normal(3)), lambda: hesse.diagonal(G),
    ):  # fmt: skip
        with count_traffic() as outer, count_traffic() as traffic:
            ask()
        assert str(outer) == str(traffic)
        found.append((traffic.collectives, traffic.bytes_sent, traffic.by_name))
    with count_traffic() as nothing:
        pass
    assert nothing.collectives == 0
    return found


def test_a_product_is_one_all_reduce_of_what_it_has_to_send() -> None:
    for found in run_ranks(counted, 2):
        header = 8 * (4 * 2 + 1024)  # of two processes, times 2 (p - 1) / p = 1
        assert [entry[:2] for entry in found[:4]] == [
            (1, header), (1, header), (2, header + 8 * 1600), (2, header + 8 * 3 * 1600),
        ]  # fmt: skip
        assert found[0][2] == {"A product with ggn [4 tensors, 44 numbers, float64]": (1, header)}
        assert found[4][0] == 3  # an exchange of yes or no, and the diagonal


def in_a_row(rank: int) -> tuple[list[tuple[int, float]], list[Tensor], list[float]]:
    """Products of the same kind one after the other, with other questions between; their traffic and values."""
    x, loss, found, values = torch.ones(2, 3, dtype=torch.float64), torch.nn.MSELoss(), [], []
    nets = [torch.nn.Linear(3, width).double() for width in (400, 30_000)]
    for net in nets:
        torch.nn.init.ones_(net.weight), torch.nn.init.zeros_(net.bias)
    data = spread([(x * (1 + rank), torch.zeros(2, 400, dtype=torch.float64))], timeout=60)
    G, H = hesse.ggn(nets[0], loss, data), hesse.loss_hessian(nets[0], loss, data)
    wide = hesse.ggn(nets[1], loss, spread([(x, torch.zeros(2, 30_000, dtype=torch.float64))], timeout=60))
    v, w = G.in_space.normal(), wide.in_space.normal()
    asks = [lambda: G @ v] * 4 + [lambda: H @ v] * 4 + [lambda: G @ v] * 2 + [lambda: G.mass, lambda: G @ v]
    asks += [lambda: wide @ w] * 3
    for ask in asks:
        with count_traffic() as traffic:
            answer = ask()
        found.append((traffic.collectives, traffic.bytes_sent))
        if isinstance(answer, dict):
            values.append(answer["weight"].clone())
    return found, values, [G.mass, H.mass]


def test_the_third_product_in_a_row_is_one_all_reduce() -> None:
    for found, values, masses in run_ranks(in_a_row, 2):
        header, payload = 8 * (4 * 2 + 1024), 8 * 1600
        first, later = (2, header + payload), (1, payload + 8 * 11)  # behind it: one number, five pieces and their squares
        guessed_wrong = (3, first[1] + later[1])
        wide = (2, header + 8 * 120_000)  # 960,000 bytes, more than twice 256 KiB
        assert found == [first, first, later, later, guessed_wrong, first, later, later, guessed_wrong, first,
                         (0, 0.0), later, (3, wide[1] + later[1]), wide, wide]  # fmt: skip
        assert masses == [4.0 * 400, 4.0 * 400]
        assert all(torch.equal(value, values[0]) for value in values[:4])  # the same bits, whichever way they came
        assert all(torch.equal(value, values[0]) for value in values[8:11])
        torch.testing.assert_close(values[4], values[0])  # a linear model: the Hessian is the Gauss-Newton matrix


def sudden(rank: int, ranks: int) -> list[tuple[str, str]]:
    """Processes that expect the same product once more, and one that asks, is given or has something else."""
    link, layout = Link(None, 30), Layout(((2000,),), (torch.float32,), torch.device("cpu"))
    found = []

    def once(what: str = "numbers", given: int = 7, mass: float = 2.0, fails: bool = False) -> tuple[float, float]:
        def work() -> Part:
            if fails:
                raise OSError("the disk is gone")
            return Part([torch.full((2000,), rank + 1.0)], mass, given)

        sums, total = link.total(what, layout, work)
        assert bool((sums[0] == sums[0][0]).all())
        return float(sums[0][0]), total

    last = rank == ranks - 1
    odd: list[Any] = [
        lambda: once(fails=last), lambda: once("others" if last else "numbers"), lambda: once(given=8 if last else 7),
        lambda: once(given=7 + rank), lambda: once(given=2**52 - 1 - rank), lambda: once(mass=3.0 if last else 2.0),
        lambda: link.exchange("objects", lambda: rank) if last else once(), lambda: link.exchange("objects", lambda: rank),
    ]  # fmt: skip
    for ask in odd:
        for _ in range(4):
            assert once() == (ranks * (ranks + 1) / 2, 2.0 * ranks)
        try:
            found.append((type(ask()).__name__, ""))
        except Exception as error:
            found.append((type(error).__name__, str(error)))
    assert once() == (ranks * (ranks + 1) / 2, 2.0 * ranks)
    return found


@pytest.mark.parametrize("ranks", [2, *([3, 4] if ALL else [])])
def test_what_is_expected_and_does_not_come_is_told(ranks: int) -> None:
    by_rank = run_ranks(sudden, ranks, ranks)
    name = DistributedError.__name__
    for rank, found in enumerate(by_rank):
        last = rank == ranks - 1
        assert [kind for kind, _ in found] == ["OSError" if last else name] + [name] * 4 + ["tuple", name, "list"]
        if not last:
            assert f"rank {ranks - 1}: OSError: the disk is gone" in found[0][1]
        assert "numbers [1 tensors, 2000 numbers, float32]" in found[1][1]


def test_pieces_of_hashes_tell_equal_from_unequal() -> None:
    source = random.Random(3)
    for ranks in (2, 3, 5, 64, 1000, 2**16):
        like = torch.zeros(0)
        for _ in range(20):
            one, other = source.randrange(2**52), source.randrange(2**52)
            same, odd = (tail(ranks, number, like) for number in (one, other))
            assert all_alike(ranks, ranks * same)
            assert not all_alike(ranks, (ranks - 1) * same + odd)
            assert not all_alike(ranks, (ranks - 1) * same + tail(ranks, None, like))
            near = tail(ranks, one ^ (1 << source.randrange(52)), like)  # one bit
            assert not all_alike(ranks, (ranks - 1) * same + near)
        largest = ranks * tail(ranks, 2**52 - 1, like.double())
        assert bool((largest <= 2**24).all())  # float32 holds it exactly


def test_buffers_hold_every_dtype() -> None:
    source = torch.Generator().manual_seed(2)
    tensors: list[Any] = [
        torch.randn(2, 3, generator=source, dtype=dtype)
        for dtype in (torch.float64, torch.complex128, torch.float32, torch.bfloat16, torch.complex64, torch.float16)
    ]
    tensors += [torch.arange(4), torch.zeros(0, 3), torch.randn(2, 3, generator=source, dtype=torch.complex64).conj()]
    layout = Layout.of(tensors)
    buffers = pack(layout, tensors)
    assert [buffer.dtype for buffer in buffers] == [torch.float64, torch.float32]
    for back, tensor in zip(unpack(layout, buffers), tensors, strict=True):
        assert back.shape == tensor.shape and torch.equal(back.to(tensor.dtype), tensor)
    assert all(not buffer.any() for buffer in pack(layout, None))
    assert [len(buffer) for buffer in pack(layout, None)] == [len(buffer) for buffer in buffers]
    with pytest.raises(StructureError, match="one layout"):
        pack(layout, tensors[:-1])


def test_the_model_of_time_follows_the_ring() -> None:
    alone = expected_seconds(2.0, 10**6, 1, latency=1e-3, bandwidth=1e9)
    assert (alone.total, alone.bytes_sent, alone.efficiency) == (2.0, 0.0, 1.0)
    four = expected_seconds(2.0, 10**6, 4, latency=1e-3, bandwidth=1e9)
    assert four.work == 0.5
    assert four.payload == pytest.approx(6 * (1e-3 + 4e6 / 4 / 1e9))
    assert four.header == pytest.approx(6 * (1e-3 + 8 * (16 + 1024) / 4 / 1e9))
    assert four.bytes_sent == pytest.approx(1.5 * (4e6 + 8 * 1040))
    small = expected_seconds(2.0, 1024, 4, latency=1e-3, bandwidth=1e9, itemsize=8)
    assert small.payload == 0 and small.total == small.work + small.header
    with pytest.raises(StructureError, match="bandwidth=0"):
        expected_seconds(1.0, 1, 2, latency=0.0, bandwidth=0.0)
    third = expected_seconds(2.0, 10**4, 4, latency=1e-3, bandwidth=1e9, before=2)
    assert (third.header, third.payload) == (0.0, pytest.approx(6 * (1e-3 + 4e4 / 4 / 1e9)))
    assert expected_seconds(2.0, 10**6, 4, latency=1e-3, bandwidth=1e9, before=2) == four  # 4 MB are not guessed
    good: dict[str, Any] = {"work": 1.0, "numbers": 10, "ranks": 2, "latency": 1e-6, "bandwidth": 1e9}
    bad: dict[str, list[Any]] = {
        "work": [-1.0, "1", float("inf")], "numbers": [1.5, -1], "ranks": [0, 2.5, True, 10**400],
        "latency": [float("nan")], "bandwidth": [None, 0], "itemsize": [0], "before": [-1],
    }  # fmt: skip
    for key, value in ((key, value) for key, values in bad.items() for value in values):
        with pytest.raises(StructureError, match=f"{key}="):
            expected_seconds(**{**good, key: value})
