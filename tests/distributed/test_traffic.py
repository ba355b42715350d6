"""Bytes are counted as the buffers' sizes say, and the model of time follows the ring."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hesse
from hesse.core.errors import StructureError
from hesse.distributed import count_traffic, expected_seconds, spread
from hesse.distributed.buffers import Layout, pack, unpack

from . import cases
from .ranks import run_ranks


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
