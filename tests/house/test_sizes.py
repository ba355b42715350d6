"""Files, functions and constructors stay small enough to read."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from .source import Source, sources

FILE_AIM, FILE_MOST = 200, 400
FUNCTION_MOST = 60
CONSTRUCTOR_MOST = 6

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(source: Source) -> Iterator[Function]:
    return (node for node in ast.walk(source.syntax) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def lines_of(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def arguments_of(constructor: Function) -> int:
    args = constructor.args
    return len(args.posonlyargs) + len(args.args) + len(args.kwonlyargs) - 1


def long_functions(source: Source) -> list[str]:
    return [f"{source.path}:{f.lineno} {f.name} has {lines_of(f)} lines" for f in functions(source)
            if lines_of(f) > FUNCTION_MOST]  # fmt: skip


def wide_constructors(source: Source) -> list[str]:
    return [f"{source.path}:{f.lineno} has {arguments_of(f)} arguments" for f in functions(source)
            if f.name in ("__init__", "__new__") and arguments_of(f) > CONSTRUCTOR_MOST]  # fmt: skip


def test_files(capsys: pytest.CaptureFixture[str]) -> None:
    lengths = sorted(((source.text.count("\n"), source.path) for source in sources()), reverse=True)
    with capsys.disabled():
        for lines, path in lengths:
            if lines > FILE_AIM:
                print(f"\n  {path}: {lines} lines, where the aim is {FILE_AIM}", end="")
    assert not [entry for entry in lengths if entry[0] > FILE_MOST]


def test_functions() -> None:
    wrong = [entry for source in sources() for entry in long_functions(source)]
    assert not wrong, "\n".join(wrong)


def test_constructors() -> None:
    wrong = [entry for source in sources() for entry in wide_constructors(source)]
    assert not wrong, "\n".join(wrong)


def test_the_test_can_fail() -> None:
    body = "\n".join(f"    x{i} = {i}" for i in range(60))
    text = f"def f():\n{body}\nclass A:\n    def __init__(self, a, b, c, /, d, *, e, f, g): ...\n"
    source = Source("hesse.core.a", "a.py", text, ast.parse(text))
    assert long_functions(source) == ["a.py:1 f has 61 lines"]
    assert wide_constructors(source) == ["a.py:63 has 7 arguments"]
