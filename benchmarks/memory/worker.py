"""One quantity in this process: its growth of resident memory, under a budget or without, and what it gave."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

import hesse
from benchmarks.memory.cases import CASES
from hesse.core import tree
from hesse.core.errors import MemoryBudgetError


def main(name: str, budget: int) -> dict[str, Any]:
    """Run a quantity small, to load what is loaded once, then at its size; `budget` 0: none."""
    torch.set_num_threads(1)
    CASES[name](64)()
    with hesse.memory(2**25), suppress(MemoryBudgetError):
        CASES[name](16)()
    work = CASES[name](1)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    start = _reset()
    began = time.process_time()
    try:
        with hesse.memory(budget) if budget else nullcontext():
            result = work()
    except MemoryBudgetError as error:
        return {"status": "refused", "least": error.least, "growth": _highest() - start, "found": error.found}
    growth = _highest() - start
    return {
        "status": "done",
        "growth": growth,
        "seconds": time.process_time() - began,
        "prints": [_print(torch.as_tensor(leaf)) for leaf in tree.leaves(result) if isinstance(leaf, (Tensor, float))],
    }


def _print(leaf: Tensor) -> list[float]:
    flat = leaf.detach().flatten().double()
    weights = torch.cos(torch.arange(flat.numel(), dtype=torch.float64))
    return [float(flat @ weights), float(flat.norm())]


def _reset() -> int:
    """Set the high-water mark of this process to what it takes now; returns that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _highest()


def _highest() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
