"""Crashes, exits and hangs become findings; what runs through comes back as it is."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import hesse
from hesse.check import CheckReport, Comparison, Finding, check_derivatives
from hesse.check.isolated import isolated
from hesse.check.isolation.last_words import last_line, place, words_of
from hesse.check.isolation.news import Running, listening, tell
from hesse.check.operator import check_operator
from hesse.core.errors import LeafError, StructureError, UnsupportedError
from hesse.operators import Dense

REPORT = CheckReport("f", "quick", (), (), (), 1)
X = torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(2, 3)


class Custom(torch.autograd.Function):
    """Twice its input; the backward does what it is told."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, harm: Callable[[], Any]) -> torch.Tensor:
        ctx.harm = harm
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        ctx.harm()
        return 2 * grads[0], None


def harmed(harm: Callable[[], Any]) -> CheckReport:
    tell(Running("reverse mode", "w"))
    tell(Comparison("reverse mode", "w", 1, 0.0, 0.0, "ok"))
    tell(Running("second order", "w"))
    Custom.apply(X.clone().requires_grad_(), harm).sum().backward()
    return REPORT


def spin() -> Any:
    while True:
        pass


HARMS: dict[str, tuple[Callable[[], Any], str]] = {
    "segmentation fault": (lambda: ctypes.string_at(0), "killed by SIGSEGV"),
    "abort": (os.abort, "killed by SIGABRT"),
    "os._exit": (lambda: os._exit(3), "exited with status 3"),
    "os._exit(0)": (lambda: os._exit(0), "exited with status 0"),
    "sys.exit": (lambda: sys.exit(4), "raises SystemExit(4)"),
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL"),
    "sleeps": (lambda: time.sleep(1000), "hangs: no comparison ended within 2 s"),
    "spins": (spin, "hangs"),
}


@pytest.mark.parametrize("name", HARMS)
def test_harm_is_a_finding_with_what_ran_and_what_had_been_compared(name: str) -> None:
    harm, words = HARMS[name]
    timeout = 2.0 if "hangs" in words else 60.0
    report = isolated(partial(harmed, harm), name="custom", level="full", timeout=timeout)
    (finding,) = report.findings
    assert words in finding.diagnosis
    assert (finding.check, finding.leaf) == ("second order", "w")
    assert (report.name, report.level, report.verdict) == ("custom", "full", "wrong")
    assert report.compared[0] == Comparison("reverse mode", "w", 1, 0.0, 0.0, "ok")
    assert "compared before: reverse mode" in report.notes


def test_the_source_line_is_named() -> None:
    (crash,) = isolated(partial(harmed, HARMS["segmentation fault"][0])).findings
    assert "test_isolated.py:" in crash.diagnosis
    assert "ctypes.string_at(0)" in crash.diagnosis
    (hang,) = isolated(partial(spin), timeout=2.0).findings
    assert " in spin at " in hang.diagnosis


def test_what_was_written_to_standard_error_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    def shout() -> CheckReport:
        os.write(2, b"free(): invalid pointer\n")
        os.abort()

    (finding,) = isolated(shout).findings
    assert "its last words: free(): invalid pointer" in finding.diagnosis
    assert "free(): invalid pointer" in capfd.readouterr().err


def test_a_report_comes_back_whole() -> None:
    run = partial(check_derivatives, lambda x: x.sin().sum(), X)
    assert isolated(run) == run()
    wrong = partial(check_operator, Dense(X, X_space(3), X_space(2)))
    assert isolated(wrong) == wrong()


def X_space(n: int) -> Any:
    from hesse.operators.base import flat_space

    return flat_space(n, torch.float64)


def test_exceptions_come_back_with_their_type() -> None:
    with pytest.raises(LeafError, match="no leaf"):
        isolated(partial(check_derivatives, lambda x: x, torch.arange(3)))

    class LocalError(Exception):
        pass

    def unpicklable() -> CheckReport:
        raise LocalError("cannot travel")

    (finding,) = isolated(unpicklable).findings
    assert "raises LocalError: cannot travel" in finding.diagnosis


def test_news_put_off_the_timeout() -> None:
    def slow() -> CheckReport:
        for step in range(16):
            time.sleep(0.2)
            tell(Running(f"step {step}"))
        return REPORT

    assert isolated(slow, timeout=3.0) == REPORT


def test_findings_before_the_crash_are_kept() -> None:
    found = Finding("transposed input", "", None, 1.0, 2.0, 0.0, "factor 0.5")

    def run() -> CheckReport:
        tell(Comparison("transposed input", "", 1, 0.5, 0.0, "wrong"), found)
        os.abort()

    report = isolated(run)
    assert report.findings[0] == found
    assert len(report.findings) == 2


def test_laws_of_operators_tell_what_runs() -> None:
    class Crashing(Dense):
        def mm(self, V: Any) -> Any:
            os.abort()

    report = isolated(partial(check_operator, Crashing(X)))
    assert report.findings[0].check == "spaces"

    class CrashingOnStrides(Dense):
        def mv(self, v: Any) -> Any:
            if len(v) > 1 and v.stride() != (1,):
                os.abort()
            return super().mv(v)

    report = isolated(partial(check_operator, CrashingOnStrides(X)))
    assert report.findings[0].check == "strides"
    assert {"spaces", "adjoint"} <= {row.check for row in report.compared}


def test_nothing_reaches_the_caller(untouched: None) -> None:
    weights = torch.ones(3)

    def writes() -> CheckReport:
        weights.fill_(7)
        torch.manual_seed(5)
        torch.set_default_dtype(torch.float64)
        os.environ["HESSE_O_TEST"] = "1"
        return REPORT

    isolated(writes)
    assert weights.tolist() == [1, 1, 1]
    assert "HESSE_O_TEST" not in os.environ
    assert not multiprocessing.active_children()


def test_parallel_work_in_the_parent_does_not_hang_the_child() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        work()
        assert isolated(work, timeout=60) == REPORT
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)


def work() -> CheckReport:
    a = torch.randn(300, 300, requires_grad=True, generator=torch.Generator().manual_seed(1))
    b = torch.nn.functional.conv2d(torch.ones(8, 3, 32, 32), torch.ones(16, 3, 3, 3, requires_grad=True)).sum()
    ((a @ a).softmax(0).sum() + b).backward()
    torch.arange(200_000.0).flip(0).sort()
    torch.linalg.svd(a.detach()[:60, :60])
    return REPORT


def test_a_fresh_interpreter_where_an_accelerator_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    run = partial(check_derivatives, torch.sin, X)
    assert isolated(run, timeout=120) == run()


def test_an_accelerator_in_use_and_no_way_to_pickle_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    with pytest.raises(UnsupportedError, match=r"CUDA cannot be forked.*pickled"):
        isolated(lambda: REPORT)


def test_a_daemonic_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    with pytest.raises(UnsupportedError, match="daemonic"):
        isolated(lambda: REPORT)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_the_timeout_is_positive(timeout: float) -> None:
    with pytest.raises(StructureError, match="timeout"):
        isolated(lambda: REPORT, timeout=timeout)


def test_news_go_nowhere_without_a_listener() -> None:
    heard: list[Any] = []
    with listening(heard.append):
        tell(Running("a"), Running("b", "w"))
    tell(Running("c"))
    assert heard == [Running("a"), Running("b", "w")]


def test_last_words() -> None:
    assert "SIGFPE (an integer" in words_of(-signal.SIGFPE)
    assert words_of(-64 - 100) == "the process was killed by signal 164"
    torchs = f'  File "{torch.__file__}", line 3 in apply'
    users = f'  File "{__file__}", line 1 in backward'
    assert place("\n".join([torchs, users])).startswith(f", in backward at {__file__}:1 `")
    assert place(torchs).startswith(", in apply at ")
    assert place("") == last_line(" \n") == ""


class Killed(torch.autograd.Function):
    """The square, whose backward pass ends the process."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGSEGV)
        return 2 * g * ctx.saved_tensors[0]


class KilledModule(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Killed.apply(x)


@pytest.mark.parametrize("kind", ["function", "module"])
def test_checks_run_isolated_by_a_keyword_and_name_the_comparison(kind: str) -> None:
    x = torch.randn(3, dtype=torch.float64)
    if kind == "function":
        report = hesse.check_derivatives(Killed.apply, x, isolated=True)
        sound = hesse.check_derivatives(torch.sin, x, isolated=True)
    else:
        report = hesse.check_module(KilledModule(), x, isolated=True)
        sound = hesse.check_module(torch.nn.Linear(3, 2).double(), x, isolated=True)
    assert report.verdict == "wrong"
    assert any("SIGSEGV" in finding.diagnosis for finding in report.findings)
    assert report.findings[0].check in ("reverse mode", "first run")
    assert sound.ok
