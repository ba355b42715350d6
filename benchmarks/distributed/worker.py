"""One process of the benchmark: times of all-reduces, of exchanges, and of Gauss-Newton products over its share of the data."""

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
from hesse.distributed.buffers import Layout
from hesse.distributed.link import Link, Part
from hesse.operators import LinearOperator

SIZES = (128, 2**10, 2**14, 2**17, 2**20, 2**22)  # float32 numbers of a buffer
BATCHES, SAMPLES = 12, 64  # 12 = 1 x 12 = 2 x 6 = 3 x 4 = 4 x 3: equal shares
NUMBERS = (2_000, 20_000, 100_000)  # float32 numbers of an exchange
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


def exchange(numbers: int, repeats: int) -> dict[str, float]:
    """Seconds of an exchange that was not expected (header, then payload), and of one that was (both in one buffer)."""
    link, layout = Link(None, 60), Layout(((numbers,),), (torch.float32,), torch.device("cpu"))
    part = Part([torch.ones(numbers)], 1.0)
    questions = itertools.cycle(("one", "another"))
    two = median_seconds(lambda: link.total(next(questions), layout, lambda: part), repeats)
    one = median_seconds(lambda: link.total("the same", layout, lambda: part), repeats)
    return {"numbers": numbers, "two": two, "one": one}


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
    exchanges = [exchange(numbers, 4 * repeats) for numbers in NUMBERS] if dist.get_world_size() > 1 else []
    products = [product(name, repeats) for name in WIDTHS]
    found = {"ranks": dist.get_world_size(), "all_reduce": sums, "exchanges": exchanges, "products": products}
    if dist.get_rank() == 0:
        sys.stdout.write(f"\nRESULT {json.dumps(found)}\n")
        sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
