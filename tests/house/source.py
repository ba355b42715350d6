"""The source files of the package, parsed once."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import hesse

PACKAGE = Path(hesse.__file__).parent


@dataclass(frozen=True)
class Source:
    """One module: its dotted name, its path as people read it, its text and syntax tree."""

    module: str
    path: str
    text: str
    syntax: ast.Module

    @property
    def folder(self) -> str:
        """The folder (or single-file module) right under hesse; empty for ``hesse/__init__.py``."""
        return [*self.module.split("."), ""][1]


@cache
def sources() -> tuple[Source, ...]:
    """Every Python file of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE.parent)
        parts = relative.with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found.append(Source(module, str(relative), text, ast.parse(text)))
    return tuple(found)
