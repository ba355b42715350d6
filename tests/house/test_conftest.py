"""The fixtures that other tests rely on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"

INNER = """
import torch, pytest

IMPORTED = torch.rand(1)

@pytest.fixture(scope="module")
def shared(): return torch.rand(1)

def test_numbers(shared): print("NUMBERS", torch.rand(1).item(), shared.item(), IMPORTED.item())
def test_other_numbers(shared): print("OTHERS", shared.item(), torch.rand(1).item())
def test_sample(sweep): print("DREW", sweep(range(1000), 3))
def test_small(sweep): assert sweep([1, 2], 3) == [1, 2]
def test_random_state(untouched): torch.rand(1)
def test_dtype(untouched): torch.set_default_dtype(torch.float64)
def test_dtype_back(): torch.set_default_dtype(torch.float32)
def test_grad_mode(untouched): torch.set_grad_enabled(False)
def test_grad_mode_back(): torch.set_grad_enabled(True)
def test_clean(untouched): torch.rand(1, generator=torch.Generator())
"""


def run(folder: Path, *names: str, **variables: str) -> str:
    (folder / "conftest.py").write_text(CONFTEST.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "test_inner.py").write_text(INNER, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HESSE_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider"]
    command += [f"{folder / 'test_inner.py'}::{name}" for name in names] or [str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment | variables, cwd=folder)
    return done.stdout


def drawn(output: str, word: str = "DREW") -> str:
    return next(line for line in output.splitlines() if line.startswith(word))


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run(tmp_path_factory.mktemp("first"), HESSE_TEST_SEED="11")


def test_the_seed_is_shown_and_decides_the_sample(seeded: str, tmp_path: Path) -> None:
    assert "HESSE_TEST_SEED=11, sweeps sampled" in seeded
    assert drawn(run(tmp_path, HESSE_TEST_SEED="11")) == drawn(seeded)
    other = run(tmp_path)
    assert drawn(other) != drawn(seeded)
    assert "HESSE_TEST_SEED=" in other


def test_all_cases_in_a_full_run(tmp_path: Path) -> None:
    output = run(tmp_path, HESSE_TEST_ALL="1")
    assert "sweeps full" in output
    assert "DREW [0, 1, 2, 3, 4" in output


def test_numbers_from_the_default_generator_depend_on_the_name_alone(seeded: str, tmp_path: Path) -> None:
    """Whatever the seed and the order of tests."""
    turned = run(tmp_path, "test_other_numbers", "test_numbers", HESSE_TEST_SEED="12")
    assert [drawn(turned, word) for word in ("OTHERS", "NUMBERS")] == [drawn(seeded, word) for word in ("OTHERS", "NUMBERS")]
    numbers = [*drawn(seeded, "NUMBERS").split()[1:], drawn(seeded, "OTHERS").split()[2]]
    assert len(set(numbers)) == 4


def test_what_a_test_leaves_changed_is_an_error(seeded: str) -> None:
    for name in ("test_random_state", "test_dtype", "test_grad_mode"):
        assert f"ERROR test_inner.py::{name}" in seeded
    for name in ("test_clean", "test_small", "test_dtype_back"):
        assert f"PASSED test_inner.py::{name}" in seeded
    assert "3 errors" in seeded
