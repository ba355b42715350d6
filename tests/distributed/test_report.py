"""`hesse report` under torchrun: the batches dealt out, the numbers those of one process, one process that writes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import DataLoader, TensorDataset

from hesse.cli import main
from hesse.core.errors import DistributedError
from hesse.distributed import deal

from .ranks import run_ranks

CODE = """
import torch
from torch import nn

def _case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
    return model, nn.CrossEntropyLoss(), torch.rand(31, 4, dtype=torch.float64), torch.arange(31) % 3

def many():
    model, loss, x, y = _case()
    return model, loss, [(x[i:j], y[i:j]) for i, j in ((0, 12), (12, 19), (19, 22), (22, 31))]

def shuffled():
    model, loss, x, y = _case()
    data = torch.utils.data.TensorDataset(x, y)
    return model, loss, torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)

def one():
    model, loss, data = many()
    return model, loss, data[0]
"""
ALL = os.environ.get("HESSE_TEST_ALL", "") not in ("", "0")
PANELS = "curvature,spectrum,kfac,dimension,samples" if ALL else "curvature,kfac"


def run_hesse(rank: int, ranks: int, folder: str, target: str, *options: str) -> tuple[int, str]:
    """The command in a process of torchrun's."""
    os.chdir(folder)
    os.environ.update(WORLD_SIZE=str(ranks), RANK=str(rank), COLUMNS="120")
    sys.modules.pop("models", None)
    try:
        done = CliRunner().invoke(main, ["report", f"models.py:{target}", *options])
        return done.exit_code, done.output
    finally:
        del os.environ["WORLD_SIZE"], os.environ["RANK"]


def several(rank: int, ranks: int, folder: str) -> list[tuple[int, str]]:
    return [
        run_hesse(rank, ranks, folder, "many", "--out", "many", "--panels", PANELS),
        run_hesse(rank, ranks, folder, "shuffled", "--out", "shuffled", "--panels", "curvature"),
        run_hesse(rank, ranks, folder, "one", "--out", "one", "--panels", "curvature"),
        run_hesse(rank, ranks, folder, "shuffled", "--out", "wide", "--panels", "curvature", "--dtype", "float32"),
    ]


def numbers(path: Path) -> dict[str, Any]:
    """All numbers of a report but times and threads, by their place."""
    found: dict[str, Any] = {}

    def walk(place: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if key not in ("cost", "gradient_seconds", "created", "seconds", "threads"):
                    walk(f"{place}.{key}", item)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk(f"{place}.{index}", item)
        else:
            found[place] = value

    walk("", json.loads(path.read_text()))
    return found


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys() and len(found) > 30
    for place, value in expected.items():
        if isinstance(value, float) and found[place] is not None:
            assert math.isclose(found[place], value, rel_tol=1e-6, abs_tol=1e-9), place
        else:
            assert found[place] == value, place


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def alone(target: str, panels: str) -> dict[str, Any]:
    with torch.random.fork_rng():
        done = CliRunner().invoke(main, ["report", f"models.py:{target}", "--out", f"{target}-alone", "--panels", panels])
    assert done.exit_code == 0, done.output
    return numbers(Path(f"{target}-alone/report.json"))


def test_a_report_of_several_processes_has_the_numbers_of_one(folder: Path) -> None:
    first, second = run_ranks(several, 2, 2, str(folder))
    assert [code for code, _ in first] == [code for code, _ in second] == [0, 0, 0, 1], (first, second)
    assert "Written: many/report.html and many/report.json" in first[0][1]
    assert [text for _, text in second[:3]] == [""] * 3  # one process speaks
    assert "A DataLoader that shuffles" in first[3][1].replace("a DataLoader", "A DataLoader")
    same(numbers(folder / "many/report.json"), alone("many", PANELS))
    found, expected = numbers(folder / "shuffled/report.json"), alone("shuffled", "curvature")
    assert math.isclose(found[".panels.curvature.numbers.trace.value"], expected[".panels.curvature.numbers.trace.value"])
    assert numbers(folder / "one/report.json")[".about.batches"] == 1


@pytest.mark.skipif(not ALL, reason="three processes of torchrun: HESSE_TEST_ALL=1")
def test_torchrun_itself(folder: Path) -> None:
    command = Path(sys.executable).parent
    settings = {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "GLOO_SOCKET_IFNAME": "lo"}  # whatever the host calls itself
    done = subprocess.run(
        [command / "torchrun", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "3", "--no-python",
         command / "hesse", "report", "models.py:many", "--out", "many", "--panels", PANELS],
        cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Written:") == 1
    same(numbers(folder / "many/report.json"), alone("many", PANELS))


def dealt_unlike(rank: int) -> str:
    x, y = torch.arange(24.0).reshape(8, 3), torch.arange(8)
    generator = torch.Generator().manual_seed(rank)
    try:
        deal(DataLoader(TensorDataset(x, y), batch_size=3, shuffle=True, generator=generator), timeout=30)
    except DistributedError as error:
        return str(error)
    return ""


def dealt_alike(rank: int, ranks: int) -> list[Any]:
    batches = [(torch.full((n, 2), float(n)), torch.arange(n)) for n in range(1, 8)]
    return [len(targets) for _, targets in deal(batches, timeout=30).batches]


def test_batches_are_dealt_out_if_all_processes_read_the_same() -> None:
    assert run_ranks(dealt_alike, 2, 2) == [[1, 3, 5, 7], [2, 4, 6]]
    for text in run_ranks(dealt_unlike, 2):
        assert "The data that are dealt out has to be the same" in text and "'batch 0'" in text
