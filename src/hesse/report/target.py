"""TARGET: ``path.py:function`` or ``module:function``, a function of no arguments that returns (model, loss, data)."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from hesse.autodiff.model import is_one_batch
from hesse.core.errors import DataError, TargetError
from hesse.report.user_code import user_code

_ASKED = "TARGET is path.py:function or module:function."
_TRIPLE = "TARGET's function returns (model, loss, data)."
_END = object()


@dataclass(frozen=True)
class Target:
    """What a TARGET gave.

    Attributes:
        name: TARGET as it was written.
        model: a module, or a pair (f, params).
        loss: ``loss(output, target)``.
        data: one batch (inputs, targets), or an iterable of batches.
    """

    name: str
    model: Any
    loss: Any
    data: Any


def load_target(name: str) -> Target:
    """Find the function, call it, and check that it gave a triple.

    Raises:
        TargetError: no such file, module or function, or something else than a triple.
        UserCodeError: the file or the function raised.
    """
    return check_triple(name, call_target(name))


def call_target(name: str) -> Any:
    """Find the function and call it.

    Returns:
        what it returned.

    Raises:
        TargetError: no such file, module or function.
        UserCodeError: the file or the function raised.
    """
    with own_arguments(name):
        function = find_function(name)
        with user_code(f"calling {getattr(function, '__name__', name)}()"):
            return function()


def split_name(name: str) -> tuple[str, str, bool]:
    """TARGET's file or module, the function's name (empty where none is named), and whether it is a file."""
    place, colon, attribute = name.rpartition(":")
    if not colon or os.sep in attribute:  # no function named; the second: a drive letter's colon
        place, attribute = name, ""
    return place, attribute, place.endswith(".py") or os.sep in place or os.path.isfile(place)


@contextmanager
def own_arguments(name: str) -> Iterator[None]:
    """A script must not read hesse's own arguments as its own."""
    arguments = sys.argv
    sys.argv = [name.rpartition(":")[0] or name]
    try:
        yield
    finally:
        sys.argv = arguments


def find_function(name: str) -> Callable[[], Any]:
    """The function that TARGET names; its file or module is run, as Python would run an import."""
    place, attribute, is_file = split_name(name)
    if not place:
        raise TargetError(_ASKED, f"'{name}' names no file or module", "write path.py:function")
    module = _load_file(name, place) if is_file else _load_module(name, place)
    found = getattr(module, attribute, None) if attribute else None
    if found is None:
        what = f"{place} has no '{attribute}'" if attribute else f"no function in '{name}'"
        raise TargetError(_ASKED, what, _candidates(place, module))
    if isinstance(found, (nn.Module, type)):
        what = (
            f"{attribute} is a module, a {type(found).__name__}" if isinstance(found, nn.Module) else f"{attribute} is a class"
        )
        remedy = f"add a function of no arguments that returns what is asked for, with {attribute} in it"
        raise TargetError("TARGET's function is called without arguments.", what, remedy)
    if not callable(found):
        raise TargetError(_ASKED, f"{attribute} is a {type(found).__name__}, not a function", _candidates(place, module))
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        remedy = f"give its arguments default values, or add a function of no arguments that calls {attribute}"
        raise TargetError("TARGET's function is called without arguments.", f"{attribute}: {error}", remedy) from error
    except ValueError:
        pass  # a built-in without a signature: calling it will tell
    return found


def check_triple(name: str, returned: Any) -> Target:
    """The triple as a `Target`, or a `TargetError` that says what came instead."""
    if not (isinstance(returned, (tuple, list)) and len(returned) == 3):
        raise TargetError(_TRIPLE, f"{name} returned {describe(returned)}", "return (model, loss, data) in this order")
    model, loss, data = returned
    if isinstance(model, list):
        model = tuple(model)
    is_pair = isinstance(model, tuple) and len(model) == 2 and callable(model[0])
    if isinstance(model, type) or not (isinstance(model, nn.Module) or is_pair):
        remedy = "return an nn.Module, or a pair (f, params) with f(params, *inputs), as the first of the three"
        raise TargetError(_TRIPLE, f"the model that {name} returned is {describe(model)}", remedy)
    if isinstance(loss, type) or not callable(loss):
        remedy = f"return {loss.__name__}(), not the class" if isinstance(loss, type) else "return loss(output, target)"
        raise TargetError(_TRIPLE, f"the loss that {name} returned is {describe(loss)}", remedy)
    return Target(name, model, loss, data)


def batches_of(data: Any, asked: str) -> Iterator[Any]:
    """The batches of a triple's data: the one that it is, or those that it yields.

    Raises:
        DataError: neither, or no batch at all.
        UserCodeError: reading the data raised.
    """
    if is_one_batch(data):
        yield data
        return
    if not isinstance(data, Iterable):
        raise DataError(asked, f"a {type(data).__name__} as data", "return (inputs, targets), or an iterable of such pairs")
    with user_code("reading the data"):
        batches = iter(data)
    empty = True
    while True:
        with user_code("reading the data"):
            batch = next(batches, _END)
        if batch is _END:
            break
        empty = False
        yield batch
    if empty:
        raise DataError(asked, "no batch", "return at least one batch")


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as hesse's data has them, as arguments: a tensor, a tuple of positional ones, or a dict of keyword ones."""
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _load_file(name: str, path: str) -> ModuleType:
    if not os.path.isfile(path):
        raise TargetError(_ASKED, f"no file {os.path.abspath(path)} (from '{name}')", "check the path")
    folder, stem = os.path.dirname(os.path.abspath(path)), os.path.splitext(os.path.basename(path))[0]
    module_name = f"_hesse_target_{stem}" if stem in sys.modules else stem
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise TargetError(_ASKED, f"{path} is no Python file", "pass a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # as an import does: dataclasses and pickles look there
    sys.path.insert(0, folder)  # as running the file does: it may import its neighbors
    with user_code(f"running {path}"):
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return module


def _load_module(name: str, module_name: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())
    with user_code(f"importing {module_name}"):
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if module_name != missing and not module_name.startswith(missing + "."):
                raise  # the module is there; something that it imports is not
    raise TargetError(
        _ASKED,
        f"no module '{missing}' (from '{name}')",
        "check the name; modules are looked for in this folder and among the installed packages",
    )


def _candidates(place: str, module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    return f"use one of its functions: {', '.join(f'{place}:{f}' for f in own[:8])}" if own else "add such a function"


def describe(value: Any) -> str:
    """What came, for an error message."""
    if isinstance(value, (tuple, list)):
        kinds = ", ".join(type(item).__name__ for item in value[:5])
        return f"a {type(value).__name__} of {len(value)} ({kinds}{', ...' if len(value) > 5 else ''})"
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
