"""The pytest plugin of hesse: the fixture `hesse_check`, its options, and the seed in the report of a failure.

It stands outside the package and imports neither hesse nor torch until a test asks for the fixture, since pytest loads the
plugins of everything installed at every start.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from types import TracebackType
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
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        level: Any = request.config.getoption("hesse_level")
        yield Checker(level, seed, request.config.getoption("hesse_timeout"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
    """Say in the report of a failed check how to run it again and how to show it without hesse.

    The frames of hesse are left out of the traceback (``--full-trace`` shows them), unless the error arose in one of them.

    Args:
        item: the test.
        call: what happened.
    """
    uses = call.when == "call" and _FIXTURE in getattr(item, "fixturenames", ())
    if uses and call.excinfo is not None and not item.config.getoption("fulltrace"):
        call.excinfo = _without_hesse(call.excinfo)
    outcome: Any = yield
    report = outcome.get_result()
    if not (uses and report.failed):
        return
    checked = getattr(getattr(item, "funcargs", {}).get(_FIXTURE), "report", None)
    if checked is not None and not checked.ok and checked.reproducer:
        report.sections.append(("the same without hesse", checked.reproducer))
    report.sections.append(("hesse", f"run again with: pytest {item.nodeid!r} {_options(item.config)}"))


def _without_hesse(caught: pytest.ExceptionInfo[BaseException]) -> pytest.ExceptionInfo[BaseException]:
    """The error without the frames of hesse; whole where it arose in one of them and hesse did not raise it on purpose."""
    from hesse.core.errors import HesseError

    frames: list[TracebackType] = []
    trace: TracebackType | None = caught.tb
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    foreign = [t for t in frames if t.tb_frame.f_globals.get("__name__", "").partition(".")[0] != "hesse"]
    if not foreign or not (isinstance(caught.value, HesseError) or foreign[-1] is frames[-1]):
        return caught
    for t in reversed(foreign):
        trace = TracebackType(trace, t.tb_frame, t.tb_lasti, t.tb_lineno)
    return pytest.ExceptionInfo.from_exception(caught.value.with_traceback(trace))


def _options(config: pytest.Config) -> str:
    timeout = config.getoption("hesse_timeout")
    options = f"--hesse-seed={config.getoption('hesse_seed')} --hesse-level={config.getoption('hesse_level')}"
    return options if timeout is None else f"{options} --hesse-timeout={timeout:g}"


def _seed(config: pytest.Config, test: str) -> int:
    return zlib.crc32(f"{config.getoption('hesse_seed')}:{test}".encode())
