"""Modules made of a function: their classes by name, how they are copied, and how they are written to files."""

from __future__ import annotations

import copy
import copyreg
import importlib
import keyword
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from torch import nn

from hesse.core.errors import StructureError, UnsupportedError

_classes: dict[tuple[type, str], type] = {}


@dataclass(frozen=True)
class FunctionReference:
    """Where a function stands: what a file holds in the function's place."""

    module: str
    name: str

    def find(self) -> Callable[..., Any]:
        """The function, imported.

        Raises:
            UnsupportedError: no such module, or no such function in it.
        """
        try:
            found: Any = importlib.import_module(self.module)
            for part in self.name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise UnsupportedError(
                f"A saved module computes '{self.name}' of '{self.module}', which loading it imports.",
                str(error),
                "keep the function where it was when the module was saved, in a file that both programs import"
                + (" (a script that is run is called '__main__', and is another file elsewhere)" * (self.module == "__main__")),
            ) from error
        return found


def _reference(function: Callable[..., Any]) -> Any:
    """What pickle can write for a function: where it stands, or the callable itself where that pickles."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str):
        reference = FunctionReference(module, name)
        try:
            if reference.find() is function:
                return reference
        except UnsupportedError:
            pass  # a lambda; or a method of an instance, which may pickle by itself
    try:
        pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError, NotImplementedError) as error:
        raise UnsupportedError(
            "Pickling a module made of a function needs a function that another process can import.",
            f"{name or function!r}, which it cannot (a lambda, or defined inside a function): {error}",
            "define the function at the top of a module, or save module.state_dict()",
        ) from error
    return function


class OfFunction(nn.Module):
    """A module that computes a function given by the user; the base of `AutoModule`'s and `AutoCriterion`'s classes.

    Copies share the function. Files hold the function's name, so that loading imports it; everything else of the module
    is written as usual.

    Attributes:
        function: the function that this instance computes.
    """

    function: Callable[..., Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        own = dict(self.__dict__)
        function = own.pop("function", None)  # a module, if it is one, stands among the modules
        super(OfFunction, new).__setstate__(copy.deepcopy(own, memo))
        if function is not None:
            new.__dict__["function"] = function
        return new

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        cls = type(self)
        state = dict(self.__getstate__())
        if "function" in state:
            state["function"] = _reference(state["function"])
        base = cls.__mro__[1]
        if _classes.get((base, cls.__name__)) is cls:
            return _new, (base, cls.__name__), state
        return copyreg.__newobj__, (cls,), state  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if isinstance(state.get("function"), FunctionReference):
            state["function"] = state["function"].find()
        super().__setstate__(state)

    def _function_name(self) -> str:
        return getattr(self.function, "__name__", None) or type(self.function).__name__


T = TypeVar("T", bound=OfFunction)


def class_named(base: type[T], name: str) -> type[T]:
    """The subclass of `base` called `name`: the same class each time.

    Args:
        base: what the class derives from.
        name: what it is called.

    Raises:
        StructureError: the name is not a string that Python takes as a name.
    """
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise StructureError(
            "AutoModule(name) and AutoCriterion(name) make a class of that name.",
            repr(name),
            "pass a Python name and then the function: AutoModule('Exponential')(fn)",
        )
    made = type(name, (base,), {"__module__": base.__module__, "__qualname__": name, "__doc__": base.__doc__})
    return _classes.setdefault((base, name), made)


def _new(base: type[OfFunction], name: str) -> OfFunction:
    cls = class_named(base, name)
    return cls.__new__(cls)
