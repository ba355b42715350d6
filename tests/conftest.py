"""The session's seed, sampled or full sweeps, one thread a worker, a fixture that watches global state.

What tests draw from torch's default generator depends on their names alone, not on what ran before on the same worker.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import HealthCheck, settings

Case = TypeVar("Case")
_SEED = "HESSE_TEST_SEED"
_ALL = "HESSE_TEST_ALL"

_SLOW = [HealthCheck.too_slow]  # a busy machine is no error
settings.register_profile("sampled", deadline=None, max_examples=40, database=None, suppress_health_check=_SLOW)
settings.register_profile("all", deadline=None, max_examples=400, database=None, suppress_health_check=_SLOW)


def _full() -> bool:
    return os.environ.get(_ALL, "") not in ("", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sweep-all", action="store_true", help=f"run full sweeps, as {_ALL}=1 does")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--sweep-all"):
        os.environ[_ALL] = "1"
    os.environ.setdefault(
        _SEED, str(random.SystemRandom().randrange(2**32))
    )  # workers inherit the environment
    settings.load_profile("all" if _full() else "sampled")
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


def pytest_report_header(config: pytest.Config) -> str:
    return (
        f"hesse: {_SEED}={os.environ[_SEED]}, sweeps {'full' if _full() else f'sampled ({_ALL}=1 runs all)'}"
    )


def _seed(name: str) -> None:
    torch.default_generator.manual_seed(zlib.crc32(name.encode()))


def pytest_collectstart(collector: pytest.Collector) -> None:
    if isinstance(collector, pytest.Module):
        _seed(collector.nodeid)  # for what a module draws as it is imported


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function):
        _seed(item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """A fixture of many tests draws the same whichever of them comes first, and leaves that one's numbers as they are."""
    if fixturedef.scope == "function":
        return (yield)
    state = torch.get_rng_state()
    _seed(f"{fixturedef.baseid}:{fixturedef.argname}:{getattr(request, 'param_index', 0)}")
    try:
        return (yield)
    finally:
        torch.set_rng_state(state)


@pytest.fixture
def sweep_rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers from the session's seed and the test's name: the same in any order and on any worker."""
    return random.Random(f"{os.environ[_SEED]}:{request.node.nodeid}")


@pytest.fixture
def sweep(sweep_rng: random.Random) -> Callable[[Sequence[Case], int], list[Case]]:
    """``sweep(cases, keep)``: all cases in a full run, else `keep` of them drawn with `sweep_rng`."""

    def choose(cases: Sequence[Case], keep: int) -> list[Case]:
        if _full() or keep >= len(cases):
            return list(cases)
        print(f"{keep} of {len(cases)} cases, {_SEED}={os.environ[_SEED]}")  # shown where the test fails
        return sweep_rng.sample(list(cases), keep)

    return choose


@pytest.fixture
def untouched() -> Iterator[None]:
    """Fails the test if it leaves the default dtype, the grad mode or torch's random state changed."""
    state, modes = torch.get_rng_state(), _modes()
    yield
    changed = [f"{name}: {value}" for name, value in _modes().items() if value != modes[name]]
    changed += [] if torch.equal(torch.get_rng_state(), state) else ["torch's random state"]
    assert not changed, f"the test left changed {', '.join(changed)}"


def _modes() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
    }
