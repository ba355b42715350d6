"""The sets of planted bugs: the open one (``bugs_*.py``), the frozen (``frozen_*.py``) and the unseen (``unseen_*.py``)."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.checks.bug import Bug, Program

DTYPES = {"float64": torch.float64, "float32": torch.float32}
SETS = {"open": "bugs_*.py", "frozen": "frozen_*.py", "unseen": "unseen_*.py"}


@functools.cache
def bugs_of(name: str) -> dict[str, Bug]:
    """The bugs of a set by name."""
    files = sorted(Path(__file__).parent.glob(SETS[name]))
    modules = [importlib.import_module(f"benchmarks.checks.{file.stem}") for file in files]
    return {bug.name: bug for module in modules for bug in module.BUGS}


@dataclass(frozen=True)
class Case:
    """One program of one bug: what a checker is run on."""

    set: str
    bug: str
    dtype: str
    planted: bool

    def __str__(self) -> str:
        return f"{self.set}:{self.bug}:{self.dtype}:{'planted' if self.planted else 'sound'}"

    @staticmethod
    def parse(text: str) -> Case:
        name, bug, dtype, planted = text.split(":")
        return Case(name, bug, dtype, planted == "planted")

    @property
    def kind(self) -> str:
        return bugs_of(self.set)[self.bug].kind

    def program(self) -> Program:
        return bugs_of(self.set)[self.bug].make(DTYPES[self.dtype], self.planted)


def cases(sets: list[str], dtypes: list[str], only: list[str] | None = None) -> list[Case]:
    """Every case of these sets in these dtypes: planted and sound."""
    return [
        Case(name, bug.name, dtype, planted)
        for name in sets
        for bug in bugs_of(name).values()
        if only is None or bug.name in only or bug.kind in only
        for dtype in dtypes
        if DTYPES[dtype] in bug.dtypes
        for planted in (True, False)
    ]
