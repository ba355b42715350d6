"""Every error that hesse raises says what was asked, what was found and what to do."""

from __future__ import annotations

import ast

from hesse.core import errors

from .source import Source, sources

CLASSES = {name for name, value in vars(errors).items() if isinstance(value, type)}


def incomplete(source: Source) -> list[str]:
    """Calls of error classes with fewer than the three parts."""
    return [
        f"{source.path}:{node.lineno} {node.func.id} has {len(node.args) + len(node.keywords)} of three parts"
        for node in ast.walk(source.syntax)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in CLASSES
        and len(node.args) + len(node.keywords) < 3
        and not any(isinstance(argument, ast.Starred) for argument in node.args)
    ]


def test_errors_have_three_parts() -> None:
    wrong = [entry for source in sources() for entry in incomplete(source)]
    assert not wrong, "\n".join(wrong)


def test_the_test_can_fail() -> None:
    text = "raise StructureError('asked', 'found')\nraise LeafError('a', 'b', 'c')\nraise DataError('a', *rest)"
    assert incomplete(Source("hesse.core.a", "a.py", text, ast.parse(text))) == ["a.py:1 StructureError has 2 of three parts"]
