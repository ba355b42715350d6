"""Costly parametrized tests run a sample of their cases, all of them in a full run."""

from __future__ import annotations

import os
import random
from collections import defaultdict

import pytest

SEED, ALL = "HESSE_TEST_SEED", "HESSE_TEST_ALL"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"sampled(keep): so many of the cases, drawn by {SEED}; all with {ALL}=1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The draw is that of every worker: from the session's seed and the name of the test."""
    if os.environ.get(ALL, "") not in ("", "0"):
        return
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sampled"):
            cases[item.nodeid.partition("[")[0]].append(item)
    left_out: set[pytest.Item] = set()
    for name, found in cases.items():
        mark = found[0].get_closest_marker("sampled")
        keep = mark.args[0] if mark else len(found)
        rng = random.Random(f"{os.environ[SEED]}:{name}")
        left_out.update(rng.sample(found, max(len(found) - keep, 0)))
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
