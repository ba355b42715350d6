"""The command line: exit codes, what is printed where, options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from hesse.cli import main

CODE = """
import torch
from torch import nn

calls = []

def good():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    return model, nn.CrossEntropyLoss(), (torch.rand(12, 4), torch.arange(12) % 3)

def unseeded():
    model = nn.Linear(4, 3)
    return model, nn.CrossEntropyLoss(), (torch.ones(6, 4), torch.arange(6) % 3)

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 3)

    def forward(self, x):
        return self.linear(x)  # the line of the user

def broken():
    return Broken(), nn.CrossEntropyLoss(), (torch.rand(12, 4), torch.arange(12) % 3)

def raises():
    data = {}
    return data["missing"]

def empty():
    return nn.Linear(4, 3), nn.CrossEntropyLoss(), (torch.rand(0, 4), torch.arange(0))

def not_a_triple():
    return nn.Linear(4, 3)

class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return g

def layer():
    return nn.Linear(4, 3), torch.rand(5, 4)

def halved():
    return Halved.apply, torch.rand(5, dtype=torch.float64)

def broken_layer():
    return Broken(), torch.rand(5, 4)

def finite():
    x = torch.ones(3, requires_grad=True)
    x.sum().backward()

def pole():
    x = torch.zeros(3, requires_grad=True)
    (1 / x).sum().backward()  # the pole

def no_data():
    return nn.Linear(4, 3), nn.MSELoss(), []

def leaves():
    raise SystemExit(0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "models.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "120")
    with torch.random.fork_rng():  # the command seeds torch
        yield tmp_path
    sys.modules.pop("models", None)


def hesse(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def in_a_process(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_report_writes_both_files_and_prints_the_summary(folder: Path) -> None:
    done = hesse("report", "models.py:good", "--dtype", "float64", "--seed", "3", "--memory", "1GiB")
    assert done.exit_code == 0, done.stderr
    numbers = json.loads((folder / "hesse-report" / "report.json").read_text())
    assert list(numbers["panels"]) == ["check", "samples", "layers", "curvature", "spectrum", "dimension", "kfac"]
    assert (numbers["about"]["dtype"], numbers["about"]["seed"]) == ("float64", 3)
    assert "Derivatives checked" in done.stdout
    assert "hesse-report/report.html and hesse-report/report.json" in done.stdout
    assert (folder / "hesse-report" / "report.html").stat().st_size > 20_000


def test_panels_out_and_a_module_as_target(folder: Path) -> None:
    done = hesse("report", "models:good", "--panels", "layers, samples", "--out", "a/b", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    numbers = json.loads((folder / "a" / "b" / "report.json").read_text())
    assert list(numbers["panels"]) == ["layers", "samples"]


def test_the_seed_reaches_the_users_function(folder: Path) -> None:
    losses = []
    for seed in ("1", "1", "2"):
        assert hesse("report", "models.py:unseeded", "--panels", "layers", "--seed", seed).exit_code == 0
        losses.append(json.loads((folder / "hesse-report" / "report.json").read_text())["about"]["loss_value"])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        ("raises", ['return data["missing"]', "KeyError: 'missing'", "calling raises()"]),
        ("broken", ["return self.linear(x)  # the line of the user", "RuntimeError", "computing the loss"]),
    ],
)
def test_the_users_exception_shows_their_traceback(folder: Path, target: str, lines: list[str]) -> None:
    done = hesse("report", f"models.py:{target}")
    assert done.exit_code == 2
    assert all(line in done.stderr for line in lines), done.stderr
    assert "hesse/report" not in done.stderr
    assert "click" not in done.stderr
    assert not (folder / "hesse-report" / "report.html").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("models.py:absent", "has no 'absent'"),
        ("absent.py:good", "check the path"),
        ("models.py:not_a_triple", "returned a Linear"),
    ],
)
def test_an_unusable_target_is_told_without_a_traceback(folder: Path, target: str, message: str) -> None:
    done = hesse("report", target)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "remedy:" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_hesse_refuses_is_told_without_a_traceback(folder: Path) -> None:
    done = hesse("report", "models.py:empty")
    assert done.exit_code == 1
    assert "batch of size 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refused_panel_leaves_a_report_and_exit_code_1(folder: Path) -> None:
    done = hesse("report", "models.py:good", "--panels", "curvature,samples", "--memory", "500")
    assert done.exit_code == 1
    assert "remedy:" in done.stdout
    statuses = json.loads((folder / "hesse-report" / "report.json").read_text())["panels"]
    assert statuses["curvature"]["status"] == "refused"


def test_spectrum_writes_files_and_pictures_and_prints_its_panels(folder: Path) -> None:
    done = hesse("spectrum", "models.py:good", "--dtype", "float64", "--seed", "3")
    assert done.exit_code == 0, done.stderr
    numbers = json.loads((folder / "hesse-spectrum" / "spectrum.json").read_text())
    assert list(numbers["panels"]) == ["spectrum", "dimension", "kfac"]
    assert (numbers["about"]["dtype"], numbers["about"]["seed"]) == ("float64", 3)
    written = {path.name for path in (folder / "hesse-spectrum").iterdir()}
    assert written == {
        "spectrum.html", "spectrum.json", "spectrum.png", "spectrum-2.png", "spectrum-3.png", "dimension.png", "kfac.png"
    }
    assert "Hessian: number of eigenvalues" in done.stdout
    assert "0.weight" in done.stdout
    assert "hesse-spectrum/spectrum.html, hesse-spectrum/spectrum.json" in done.stdout
    assert "and hesse-spectrum/kfac.png" in done.stdout


def test_spectrum_takes_the_options_and_gives_the_exit_codes_of_report(folder: Path) -> None:
    assert hesse("spectrum", "models.py:raises").exit_code == 2
    other = hesse("spectrum", "models.py:good", "--panels", "check")
    assert other.exit_code == 2
    assert "choose among spectrum, dimension, kfac" in other.stderr
    done = hesse("spectrum", "models.py:good", "--panels", "kfac,dimension", "--out", "a", "--memory", "300")
    assert done.exit_code == 1
    assert "remedy:" in done.stdout
    assert sorted(path.name for path in (folder / "a").glob("*.json")) == ["spectrum.json"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--panels", "chekc", "choose among check, samples, layers, curvature, spectrum, dimension, kfac"),
        ("--device", "tpu9", "cannot be used"),
        ("--dtype", "int8", "float64"),
        ("--memory", "lots", "memory='2GiB'"),
    ],
)
def test_bad_options_are_told_before_any_work(folder: Path, option: str, value: str, message: str) -> None:
    done = hesse("report", "models.py:good", option, value)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made_is_told_before_any_work(folder: Path) -> None:
    (folder / "taken").write_text("")
    done = hesse("report", "models.py:raises", "--out", "taken/inside")
    assert done.exit_code == 1
    assert "taken/inside cannot be made" in done.stderr


def test_help_and_version(folder: Path) -> None:
    assert "TARGET is path.py:function or module:function" in hesse("report", "-h").stdout
    assert "version" in hesse("--version").stdout


def test_the_command_in_a_process_of_its_own(folder: Path) -> None:
    done = in_a_process(folder, "from hesse.cli import main; main()", "report", "models:broken")
    assert done.returncode == 2
    assert done.stderr.lstrip().startswith("Traceback")
    assert 'File "' + str(folder / "models.py") in done.stderr
    assert "hesse/" not in done.stderr.replace(str(folder), "")
    assert done.stdout == ""


def test_a_missing_extra_is_named(folder: Path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from hesse.cli import main; main()"
    done = in_a_process(folder, code)
    assert done.returncode == 1
    assert "pip install 'hesse[report]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("check", "models.py:layer", "--level", "quick"), 0, "Confirmed."),
        (("check", "models.py:halved", "--level", "quick", "--seed", "3"), 1, "factor 0.5"),
        (("nan", "models.py:finite"), 0, "No NaN or infinity"),
        (("nan", "models.py:pole"), 1, "(1 / x).sum().backward()  # the pole"),
        (("graph", "models.py:layer", "--order", "0"), 0, "addmm"),
    ],
)
def test_checks_hunts_and_graphs(folder: Path, arguments: tuple[str, ...], code: int, told: str) -> None:
    done = hesse(*arguments)
    assert done.exit_code == code, done.stderr
    assert told in done.stdout
    assert (folder / f"hesse-{arguments[0]}" / f"{arguments[0]}.html").stat().st_size > 3_000
    programs = list(folder.glob("hesse-check/reproduce.py"))
    assert bool(programs) == ("halved" in arguments[1])
    assert all(str(path.relative_to(folder)) in done.stdout for path in programs)


@pytest.mark.parametrize("command", ["check", "nan", "graph"])
def test_what_the_other_commands_cannot_use(folder: Path, command: str) -> None:
    done = hesse(command, "models.py:not_a_triple")
    assert done.exit_code == 2
    assert "remedy:" in done.stderr
    done = hesse(command, "models.py:raises")
    assert done.exit_code == 2
    assert 'return data["missing"]' in done.stderr
    done = hesse(command, "models.py:broken")
    assert done.exit_code == 2
    assert "return self.linear(x)  # the line of the user" in done.stderr


@pytest.mark.parametrize("command", ["report", "check", "nan", "graph"])
def test_data_without_a_batch_and_code_that_exits(folder: Path, command: str) -> None:
    done = hesse(command, "models.py:no_data")
    assert done.exit_code == 1
    assert "found: no batch" in done.stderr
    done = hesse(command, "models.py:leaves")
    assert done.exit_code == 2
    assert "SystemExit" in done.stderr


def test_files_are_there_though_nobody_reads_the_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> None:
        raise BrokenPipeError

    for name in ("print_check", "print_hunt"):
        monkeypatch.setattr(f"hesse.cli.{name}", closed)
    hesse("check", "models.py:layer", "--level", "quick")
    hesse("nan", "models.py:pole")
    assert (folder / "hesse-check" / "check.json").exists()
    assert (folder / "hesse-nan" / "nan.dot").exists()


def test_the_list_of_commands_is_not_cut(folder: Path) -> None:
    listed = hesse("-h").stdout.partition("Commands:")[2]
    assert "nan       Find the first NaN or infinity." in listed
    assert "..." not in listed
