"""Code that ran although no path from the function leads to it: hooks kept by a library, callbacks."""

from __future__ import annotations

import gc
from types import CodeType, FunctionType
from typing import Any

from hesse.autodiff.compiled.state_walk import Walker
from hesse.autodiff.compiled.unrecordable import Unrecordable


def complete(walker: Walker) -> None:
    """Makes sure that every piece of user code that ran has been walked.

    Args:
        walker: the walk from the function itself, done.

    Raises:
        Unrecordable: some code ran that cannot be found, and it closes over variables.
    """
    searched: set[int] = set()
    while True:
        lost = [
            (code, names)
            for key, (code, names, kind) in list(walker.watch.codes.items())
            if kind == "user" and key not in walker.found and key not in searched
        ]
        if not lost:
            return
        for code, names in lost:
            searched.add(id(code))
            if id(code) not in walker.found:
                _recover(walker, code, names)


def _recover(walker: Walker, code: CodeType, names: dict[str, Any]) -> None:
    if code.co_name == "<module>":
        raise Unrecordable(f"it imports {names.get('__name__')} while it runs")
    holders: list[Any] = gc.get_referrers(code)
    owners = [holder for holder in holders if type(holder) is FunctionType and holder.__code__ is code]
    for owner in owners:
        walker.slot(None, owner, f"function {owner.__qualname__}")
    if not owners:
        if code.co_freevars:
            where = f"{code.co_filename}:{code.co_firstlineno}"
            raise Unrecordable(f"{code.co_name} ({where}) ran, but where it is kept cannot be found")
        walker.code_globals(code, names)
    walker.found.add(id(code))
