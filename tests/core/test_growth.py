"""Growth of resident memory: what is taken and given back inside is seen, and nothing is left behind."""

from __future__ import annotations

import resource
import threading
import time

import torch

from hesse.core.growth import Growth, resident_bytes, settle, taken_bytes

CPU = torch.device("cpu")
MIB = 2**20


def test_a_peak_that_is_over_is_seen() -> None:
    settle()
    with Growth(CPU) as growth:
        for _ in range(2):
            held = torch.ones(64 * MIB // 4)
            time.sleep(0.1)  # on a busy machine the thread that looks may wait for its turn
            del held
    assert 60 * MIB < growth.bytes < 80 * MIB
    assert growth.highest == growth.start + growth.bytes


def test_nothing_taken_is_nothing_seen() -> None:
    with Growth(CPU) as growth:
        sum(range(1000))
    assert growth.bytes < 2 * MIB


def test_taken_bytes_follow_what_is_held() -> None:
    settle()
    before = taken_bytes(CPU)
    held = torch.ones(32 * MIB // 4)
    assert 30 * MIB < taken_bytes(CPU) - before < 40 * MIB
    assert held.numel()
    assert resident_bytes() > 2**20


def test_no_side_effects() -> None:
    mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with Growth(CPU):
            raise KeyError
    except KeyError:
        pass
    assert "hesse-memory" not in [thread.name for thread in threading.enumerate()]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >= mark, "the user's own high-water mark is not reset"
