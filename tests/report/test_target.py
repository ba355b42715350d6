"""TARGET found, run and checked, or an error that says what was found and what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from hesse.core.errors import DataError, TargetError
from hesse.report.target import batches_of, check_triple, load_target
from hesse.report.user_code import UserCodeError

GOOD = """
import dataclasses, sys
import torch
from torch import nn
{extra}

module = nn.Linear(2, 1)

@dataclasses.dataclass
class Options:
    width: int = 3

def build(width=2):
    assert sys.argv == [{argv!r}], sys.argv
    return nn.Linear(width, 1), nn.MSELoss(), (torch.ones(4, width), torch.ones(4, 1))

def pair():
    return (lambda p, x: x @ p["w"], {{"w": torch.ones(2)}}), nn.MSELoss(), (torch.ones(4, 2), torch.ones(4))

def needs(argument):
    return None

def raises():
    raise RuntimeError("from the user")

def wrong():
    return nn.Linear(2, 1), nn.MSELoss()

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["hesse", "report"])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder: Path, name: str = "target_of_test.py", extra: str = "", argv: str = "target_of_test.py") -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(GOOD.format(extra=extra, argv=argv))


def test_a_file(folder: Path) -> None:
    write(folder)
    target = load_target("target_of_test.py:build")
    assert isinstance(target.model, nn.Linear)
    assert isinstance(target.loss, nn.MSELoss)
    assert target.data[0].shape == (4, 2)
    assert sys.argv == ["hesse", "report"]


def test_a_pair_of_function_and_parameters(folder: Path) -> None:
    write(folder)
    model = load_target("target_of_test.py:pair").model
    assert callable(model[0])
    assert list(model[1]) == ["w"]


def test_a_file_in_a_folder_may_import_its_neighbors(folder: Path) -> None:
    write(folder, "inner/target_inside.py", "import neighbor_of_target", "inner/target_inside.py")
    (folder / "inner" / "neighbor_of_target.py").write_text("value = 1")
    assert load_target("inner/target_inside.py:build").name == "inner/target_inside.py:build"


def test_a_file_named_like_a_loaded_module_does_not_replace_it(folder: Path) -> None:
    write(folder, "json.py", argv="json.py")
    import json

    load_target("json.py:build")
    assert sys.modules["json"] is json


def test_a_module(folder: Path) -> None:
    write(folder, "module_of_test.py", argv="module_of_test")
    assert isinstance(load_target("module_of_test:build").model, nn.Linear)


@pytest.mark.parametrize(
    ("name", "found", "remedy"),
    [
        ("absent.py:build", r"no file /.*absent\.py", "check the path"),
        ("absent_module:build", "no module 'absent_module'", "among the installed packages"),
        ("os.absent:build", r"no module 'os\.absent'", "check the name"),
        ("target_of_test.py", "no function in 'target_of_test.py'", r"target_of_test\.py:build, target_of_test\.py:pair"),
        ("target_of_test.py:bild", "has no 'bild'", r"use one of its functions: target_of_test\.py:build"),
        ("target_of_test.py:number", "number is a int, not a function", "target_of_test.py:build"),
        ("target_of_test.py:needs", r"needs: missing a required argument: '?argument'?", "default values"),
        ("target_of_test.py:module", "module is a module, a Linear", "a function of no arguments .* with module in it"),
        ("target_of_test.py:Options", "Options is a class", "a function of no arguments"),
        ("target_of_test.py:wrong", r"returned a tuple of 2 \(Linear, MSELoss\)", r"return \(model, loss, data\)"),
        (":build", "names no file or module", r"path\.py:function"),
    ],
)
def test_bad_targets(folder: Path, name: str, found: str, remedy: str) -> None:
    write(folder)
    with pytest.raises(TargetError, match=f"(?s){found}.*{remedy}"):
        load_target(name)


def test_what_the_user_raises_is_the_users(folder: Path) -> None:
    write(folder)
    with pytest.raises(UserCodeError, match=r"calling raises\(\): RuntimeError: from the user"):
        load_target("target_of_test.py:raises")


def test_a_missing_import_of_the_file_is_the_users(folder: Path) -> None:
    write(folder, "importing_target.py", "import surely_not_installed")
    for name in ("importing_target.py:build", "importing_target:build"):
        with pytest.raises(UserCodeError, match="No module named 'surely_not_installed'"):
            load_target(name)


def test_a_file_that_does_not_parse_is_the_users(folder: Path) -> None:
    (folder / "broken_target.py").write_text("def build(:\n")
    with pytest.raises(UserCodeError) as caught:
        load_target("broken_target.py:build")
    assert "def build(:" in caught.value.traceback


def test_the_batches_of_data_are_one_or_many() -> None:
    one = torch.ones(2, 3), torch.ones(2)
    assert list(batches_of(one, "a")) == [one]
    assert list(batches_of(iter([one, one]), "a")) == [one, one]
    with pytest.raises(DataError, match="no batch"):
        list(batches_of([], "a"))
    with pytest.raises(DataError, match="a int as data"):
        list(batches_of(5, "a"))


def test_data_that_raises_is_the_users() -> None:
    def broken() -> Iterator[object]:
        yield torch.ones(2, 3), torch.ones(2)
        raise ValueError("the second batch")

    batches = batches_of(broken(), "a")
    next(batches)
    with pytest.raises(UserCodeError, match="reading the data: ValueError: the second batch"):
        next(batches)


@pytest.mark.parametrize(
    ("triple", "message"),
    [
        (None, "a NoneType"),
        ([1, 2, 3, 4], "a list of 4"),
        ((nn.Linear, nn.MSELoss(), ()), "the class Linear"),
        ((3, nn.MSELoss(), ()), "a int"),
        ((nn.Linear(2, 1), nn.MSELoss, ()), r"(?s)the class MSELoss.*return MSELoss\(\), not the class"),
        ((nn.Linear(2, 1), torch.ones(2), ()), r"(?s)a Tensor.*loss\(output, target\)"),
    ],
)
def test_what_is_no_triple(triple: object, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        check_triple("t", triple)
