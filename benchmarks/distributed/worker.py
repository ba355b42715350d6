"""One process of the benchmark: it times all-reduces, and products of the Gauss-Newton matrix over its share of the data."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import hesse
from hesse.distributed import count_traffic, spread
from hesse.operators import LinearOperator

SIZES = (128, 2**10, 2**14, 2**17, 2**20, 2**22)  # float32 numbers of a buffer
BATCHES, SAMPLES = 12, 64  # 12 = 1 x 12 = 2 x 6 = 3 x 4 = 4 x 3: equal shares
WIDTHS = {"small": (64, 96, 10), "large": (64, 1024, 1024, 10)}


def wire_bytes(device: str = "lo") -> int:
    """Bytes that went through the network device so far, as the kernel counts them."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == device:
            return int(rest.split()[8])
    return 0


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    """The median over repeats of the slowest process's time, all starting together."""
    times = []
    for _ in range(repeats + 2):
        dist.barrier()
        began = time.perf_counter()
        run()
        taken = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
        dist.all_reduce(taken, op=dist.ReduceOp.MAX)
        times.append(float(taken))
    return statistics.median(times[2:])


def network(width: tuple[int, ...]) -> nn.Sequential:
    """A ReLU network of these widths."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(width):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def product(name: str, repeats: int) -> dict[str, Any]:
    """Times and bytes of one product over all processes, and of the same without the others."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    net, loss = network(WIDTHS[name]), nn.CrossEntropyLoss()
    source = torch.Generator().manual_seed(1)
    made = [(torch.randn(SAMPLES, 64, generator=source), torch.arange(SAMPLES) % 10) for _ in range(BATCHES)]
    mine = made[rank::ranks]
    G, local = hesse.ggn(net, loss, spread(mine)), hesse.ggn(net, loss, mine)
    v = G.in_space.normal()

    def once(operator: LinearOperator) -> Callable[[], Any]:
        return lambda: operator @ v

    work, whole = median_seconds(once(local), repeats), median_seconds(once(G), repeats)
    dist.barrier()
    before = wire_bytes()
    with count_traffic() as traffic:
        for _ in range(10):
            _ = G @ v
    dist.barrier()
    return {
        "model": name, "numbers": G.in_space.dim, "work": work, "seconds": whole,
        "bytes_sent": traffic.bytes_sent / 10, "collectives": traffic.collectives / 10,
        "wire_bytes": (wire_bytes() - before) / 10 / ranks,
    }  # fmt: skip


def main() -> None:
    """Measure, and print the first process's findings as JSON."""
    repeats = int(os.environ["REPEATS"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    sums = {}
    for size in SIZES:
        buffer = torch.ones(size)
        sums[4 * size] = median_seconds(lambda b=buffer: dist.all_reduce(b), 4 * repeats)
    found = {"ranks": dist.get_world_size(), "all_reduce": sums, "products": [product(name, repeats) for name in WIDTHS]}
    if dist.get_rank() == 0:
        sys.stdout.write(f"\nRESULT {json.dumps(found)}\n")
        sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
