"""Every public name says what it is, and what derives says what it costs."""

from __future__ import annotations

import inspect
import types

from .public import members, public_names, unwrap

DERIVING = ("hesse.autodiff", "hesse.derivatives", "hesse.curvature", "hesse.parameters", "hesse.sparse")
DERIVES_NOTHING = {"hesse.functional", "hesse.coloring", "hesse.compiling"}


def undocumented() -> list[str]:
    missing = []
    for name, value in public_names():
        if isinstance(value, (str, int, float, tuple, dict)):
            continue
        if not inspect.getdoc(value):
            missing.append(name)
        if inspect.isclass(value):
            missing += [
                f"{name}.{member}"
                for member, attribute in members(value)
                if callable(unwrap(attribute)) and not inspect.getdoc(getattr(value, member))
            ]
    return missing


def deriving() -> list[tuple[str, types.FunctionType]]:
    """Public functions of the folders that compute derivatives."""
    return [
        (name, value)
        for name, value in public_names()
        if inspect.isfunction(value) and value.__module__.startswith(DERIVING) and name not in DERIVES_NOTHING
    ]


def test_every_public_name_has_a_docstring() -> None:
    missing = undocumented()
    assert not missing, "\n".join(missing)


def test_functions_that_derive_say_their_cost() -> None:
    silent = [name for name, function in deriving() if "Cost:" not in (inspect.getdoc(function) or "")]
    assert not silent, "\n".join(silent)
