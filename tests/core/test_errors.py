"""Errors: one family, three parts, kin of the built-ins, and picklable."""

from __future__ import annotations

import builtins
import inspect
import pickle

import pytest

from hesse.core import errors
from hesse.core.errors import HesseError, MemoryBudgetError, NotConvergedError

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, HesseError)]
EXTRA: dict[type, tuple] = {MemoryBudgetError: (4096,), NotConvergedError: ({"partial": 1},)}


def make(cls: type[HesseError]) -> HesseError:
    return cls("asked for this", "found that", "do so", *EXTRA.get(cls, ()))


def test_there_are_errors() -> None:
    assert len(CLASSES) > 10


@pytest.mark.parametrize("cls", CLASSES)
def test_has_three_parts(cls: type[HesseError]) -> None:
    error = make(cls)
    assert (error.asked, error.found, error.remedy) == ("asked for this", "found that", "do so")
    assert str(error) == "asked for this\n  found: found that\n  remedy: do so"
    assert inspect.getdoc(cls)


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not HesseError])
def test_refines_a_built_in(cls: type[HesseError]) -> None:
    plain = (Exception, BaseException, object)
    kin = [base for base in cls.__mro__ if base.__module__ == "builtins" and base not in plain]
    assert kin, f"{cls.__name__} refines no built-in exception"
    assert all(hasattr(builtins, base.__name__) for base in kin)


@pytest.mark.parametrize("cls", CLASSES)
def test_crosses_process_borders(cls: type[HesseError]) -> None:
    error = make(cls)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_empty_parts_leave_no_line() -> None:
    assert str(HesseError("asked")) == "asked"
    assert str(HesseError("asked", "", "remedy")) == "asked\n  remedy: remedy"


def test_carry_what_is_needed_to_go_on() -> None:
    error = MemoryBudgetError("a", "b", "c", 4096)
    assert error.least == 4096
    assert isinstance(error, MemoryError)
    assert NotConvergedError("a", "b", "c", [1, 2]).partial == [1, 2]
