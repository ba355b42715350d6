"""The pytest plugin: one line a check, its options, seeds, and the report where a check fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

INNER = """
import os
import sys

import pytest

def test_nothing_is_imported_before_a_check_asks():
    assert "torch" not in sys.modules and "hesse" not in sys.modules

def test_function(hesse_check): hesse_check.derivatives(lambda x: x.sin(), torch_().randn(3))
def test_module(hesse_check): hesse_check.module(torch_().nn.Linear(3, 2), torch_().randn(4, 3))
def test_operator(hesse_check): hesse_check.operator(dense())

def test_wrong_function(hesse_check): hesse_check.derivatives(wrong(), torch_().randn(3))
def test_wrong_module(hesse_check): hesse_check.module(layer(), torch_().randn(4, 3))
def test_wrong_operator(hesse_check): hesse_check.operator(dense(tagged=True), laws=["tags"])

def test_user_error(hesse_check): hesse_check.derivatives(raises, torch_().randn(3))
def test_undecided(hesse_check): hesse_check(undecided())
def test_options_of_checks(hesse_check):
    hesse_check.derivatives(lambda x: x.sin(), torch_().randn(3), rtol=1e-3)
    linear = torch_().nn.Linear(3, 2)
    hesse_check.module(linear, torch_().randn(4, 3), diagonal=lambda x: {"bias": torch_().full((2,), 4.0)})
    with pytest.raises(AssertionError, match="Gauss-Newton diagonal of 'bias'"):
        hesse_check.module(linear, torch_().randn(4, 3), diagonal=lambda x: {"bias": torch_().full((2,), 5.0)})

def test_shown(hesse_check): print("SHOWN", hesse_check.level, hesse_check.seed, torch_().rand(1).item(), hesse_check.timeout)

def test_crash(hesse_check):
    if hesse_check.timeout is None: pytest.skip("not isolated")
    hesse_check.derivatives(lambda x: os.abort(), torch_().randn(3))

def test_law(hesse_check):
    import hesse.testing
    for law in hesse.testing.operator_laws(dense, laws=["adjoint", "zero"]): hesse_check(law)

def torch_():
    import torch
    return torch

def dense(tagged=False):
    from hesse.operators import Dense, Tag
    tags = frozenset({Tag.SYMMETRIC} if tagged else ())
    return Dense(torch_().tensor([[1.0, 2.0], [3.0, 4.0]]), tags=tags)

def wrong():
    torch = torch_()
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x): return 2 * x
        @staticmethod
        def backward(ctx, g): return 3 * g
    return Wrong.apply

def raises(x): raise RuntimeError("of the user")

def undecided():
    from hesse.check import CheckReport
    from hesse.check.check_report import Comparison
    from hesse.testing import Law
    report = CheckReport("f", "quick", (Comparison("reverse mode", "", 1, 0.1, 0.2, "undecided"),), (), (), 60)
    return Law("rough", lambda **options: report)

def layer():
    torch = torch_()
    class Layer(torch.nn.Linear):
        def forward(self, x): return wrong()(super().forward(x))
    return Layer(3, 2)
"""


def run(folder: Path, *options: str) -> str:
    (folder / "test_inner.py").write_text(INNER, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-p", "no:hesse", "-p", "hesse_pytest",
               "-p", "no:hypothesispytest", *options, "test_inner.py"]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False).stdout


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run(tmp_path_factory.mktemp("plugin"))


def test_right_things_pass_and_wrong_ones_fail(output: str) -> None:
    for name in (
        "function",
        "module",
        "operator",
        "law",
        "options_of_checks",
        "shown",
        "nothing_is_imported_before_a_check_asks",
    ):
        assert f"PASSED test_inner.py::test_{name}" in output, output
    for name in ("function", "module", "operator"):
        assert f"FAILED test_inner.py::test_wrong_{name}" in output
    assert "5 failed, 7 passed, 1 skipped" in output


def test_the_failure_is_the_report_without_the_frames_of_the_checker(output: str) -> None:
    assert "factor 1.500" in output
    assert "tagged symmetric" in output
    assert "checker.py" not in output
    assert "confirmed.py" not in output


def test_an_error_of_the_users_is_shown_without_the_frames_of_hesse(output: str, tmp_path: Path) -> None:
    assert "RuntimeError: of the user" in output
    assert "hesse/check" not in output.partition("short test summary")[0]
    assert "hesse/check/derivatives.py" in run(tmp_path, "-k", "user_error", "--full-trace")


def test_an_error_in_hesse_itself_is_shown_whole(tmp_path: Path) -> None:
    shown = run(tmp_path, "-k", "user_error", "--hesse-timeout=60")  # raised again in the parent, by hesse
    assert "RuntimeError: of the user" in shown
    assert "hesse/check/isolated.py" in shown


def test_the_failure_shows_itself_without_hesse(output: str) -> None:
    failure = output.partition("_ test_wrong_function _")[2].partition("_ test_wrong_module _")[0]
    assert "the same without hesse" in failure
    program = failure.partition("the same without hesse")[2]
    assert "import torch" in program
    assert "import hesse" not in program


def test_an_undecided_check_says_what_may_help(output: str) -> None:
    failure = output.partition("_ test_undecided _")[2].partition("run again")[0]
    assert "'rough' was to be confirmed" in failure
    assert "choose a point away from kinks" in failure
    assert "mend" not in failure


def test_warnings_stay_warnings_where_the_session_makes_errors_of_them(tmp_path: Path) -> None:
    shown = run(tmp_path, "-W", "error", "--hesse-level=full", "-k", "function and not wrong or module and not wrong")
    assert "2 passed" in shown, shown
    assert "DeprecationWarning" in shown  # torch's own, of the first forward mode in a process


def test_the_failure_says_how_to_run_it_again(output: str) -> None:
    assert "run again with: pytest 'test_inner.py::test_wrong_function' --hesse-seed=0 --hesse-level=quick" in output


def test_options_reach_the_tests_and_a_seed_repeats_them(output: str, tmp_path: Path) -> None:
    options = ("--hesse-level=full", "--hesse-timeout=60", "--hesse-seed=5", "-k", "shown or crash")
    other = run(tmp_path, *options)
    assert "PASSED test_inner.py::test_shown" in other
    assert "killed by SIGABRT" in other
    assert "--hesse-seed=5 --hesse-level=full --hesse-timeout=60" in other
    shown, again = shown_by(output), shown_by(other)
    assert (shown[0], again[0]) == ("quick", "full")
    assert (shown[3], again[3]) == ("None", "60.0")
    assert shown[1:3] != again[1:3]
    assert shown_by(run(tmp_path, "-k", "shown")) == shown


def shown_by(output: str) -> list[str]:
    return next(line for line in output.splitlines() if line.startswith("SHOWN")).split()[1:]
