"""The pytest plugin of hesse: the fixture `hesse_check`, its options, and the seed in the report of a failure.

It stands outside the package and imports neither hesse nor torch until a test asks for the fixture, since pytest loads the
plugins of everything installed at every start.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hesse.testing.checker import Checker

_FIXTURE = "hesse_check"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of hesse.

    Args:
        parser: of pytest.
    """
    group = parser.getgroup("hesse", "checks of derivatives")
    group.addoption(
        "--hesse-level", choices=("quick", "full"), default="quick", help="how much the fixture hesse_check compares"
    )
    group.addoption(
        "--hesse-seed", type=int, default=0, metavar="N", help="seed of directions, and of torch in tests that check"
    )
    group.addoption("--hesse-timeout", type=float, default=None, metavar="SECONDS",
                    help="run checks in processes of their own, which may crash or hang this long")  # fmt: skip


@pytest.fixture
def hesse_check(request: pytest.FixtureRequest) -> Iterator[Checker]:
    """Checks that raise unless everything is confirmed: `hesse_check.module(layer, x)`, `.derivatives(f, x)`, `.operator(A)`.

    Torch's global random state is seeded for the test, and put back after it, so that modules and inputs that the test draws
    are the same each time; each test has a seed of its own, made from ``--hesse-seed`` and its name.
    """
    import torch

    from hesse.testing.checker import Checker

    seed = _seed(request.config, request.node.nodeid)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        level: Any = request.config.getoption("hesse_level")
        yield Checker(level, seed, request.config.getoption("hesse_timeout"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
    """Say in the report of a failed check how to run it again.

    Args:
        item: the test.
        call: what happened.
    """
    outcome: Any = yield
    report = outcome.get_result()
    if report.when == "call" and report.failed and _FIXTURE in getattr(item, "fixturenames", ()):
        seed, level = item.config.getoption("hesse_seed"), item.config.getoption("hesse_level")
        report.sections.append(("hesse", f"run again with: pytest {item.nodeid!r} --hesse-seed={seed} --hesse-level={level}"))


def _seed(config: pytest.Config, test: str) -> int:
    return zlib.crc32(f"{config.getoption('hesse_seed')}:{test}".encode())
