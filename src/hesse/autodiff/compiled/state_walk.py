"""From a function to everything that its run could read: closures, globals, defaults, and what hangs on them."""

from __future__ import annotations

import builtins
import enum
import functools
import operator
import sys
from collections import OrderedDict
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor

from hesse.autodiff.compiled.state_checks import Checks
from hesse.autodiff.compiled.state_codes import (
    CodeFacts,
    facts_of,
    is_importable,
    is_library,
    is_library_function,
    names_of,
    nested_codes,
)
from hesse.autodiff.compiled.state_objects import differs, enter_object, guard_container, guard_tensor
from hesse.autodiff.compiled.state_values import ABSENT, INERT, INERT_NAMES, is_constant, is_relevant
from hesse.autodiff.compiled.state_watch import Watch
from hesse.autodiff.compiled.unrecordable import Unrecordable

_GETTERS = (operator.attrgetter, operator.methodcaller, operator.itemgetter)
_LRU = type(functools.lru_cache(maxsize=1)(int))
_BUILTINS = vars(builtins)
_WIDENING = frozenset({"__dict__", "__getattribute__", "attrgetter", "methodcaller"})
_WIDENING_FILES = ("inspect.py", "copy.py", "copyreg.py", "pprint.py", "pickle.py")


class Again(Exception):
    """More code or names matter than the walk knew: it has to start over with them."""


class Walker:
    """Writes the checks of all that one watched run could have read.

    Only functions that ran are looked into; of objects, classes and modules only attributes whose names occur in code that ran.

    Args:
        watch: what ran.
        forced: code that counts as having run; the walk adds to it, and starts over.
        extra_names: attribute names that count as read; likewise.
        looks: whether tensors are asked for identity and `requires_grad` by code that is not the user's.
    """

    def __init__(self, watch: Watch, forced: dict[int, CodeType], extra_names: set[str], *, looks: bool = False) -> None:
        self.watch = watch
        self.forced = forced
        self._extra_names = extra_names
        self.checks = Checks()
        self.entered: dict[int, Any] = {}
        self.variables: dict[int, str] = {}
        self.classes: set[tuple[int, str]] = set()
        self.found: set[int] = set()
        self._forcing = False
        self._globals: set[tuple[int, str]] = set()
        user = [(code, facts_of(code)) for code, _, kind in watch.codes.values() if kind == "user"]
        self.user_names = frozenset().union(*(facts.names for _, facts in user))
        others = (names_of(code) for code, _, kind in watch.codes.values() if kind not in ("user", "engine"))
        self.wide = watch.wide or bool(self.user_names & _WIDENING)
        self.wide |= any(
            kind == "stdlib" and code.co_filename.endswith(_WIDENING_FILES) for code, _, kind in watch.codes.values()
        )
        self.names: frozenset[str] | None = None if self.wide else self.user_names.union(extra_names, *others)
        self.looks = looks
        self.identity = looks or any(facts.identity for _, facts in user)

    def root(self, value: Any, path: str) -> None:
        """Walks from an object that is fixed: the function itself, or an argument that is no tree of tensors.

        Args:
            value: the object.
            path: its name, for people.

        Raises:
            Unrecordable: something it could have read cannot be watched.
        """
        self.slot(None, value, path)

    def slot(self, expression: str | None, value: Any, path: str) -> None:
        """Guards one place that holds a value, and what the value holds.

        Args:
            expression: how generated code reads the place; None where it can never hold anything else.
            value: what it holds.
            path: its name, for people.

        Raises:
            Unrecordable: the value, or something in it, cannot be watched.
        """
        if issubclass(type(value), Tensor):
            guard_tensor(self, expression, value, path)
        elif is_constant(value):
            if expression is not None:
                self.checks.constant(expression, value, path)
        elif type(value) is OrderedDict and not value and expression is not None:
            name = self.checks.bind(value)
            self.entered[id(value)] = value
            self.checks.add(f"v = {expression}", f"v is not {name} or v", path)
        elif type(value) in (list, tuple, dict):
            guard_container(self, expression, value, path)
        else:
            if expression is not None:
                self.checks.identical(expression, value, path)
            self.enter(value, path)

    def _place(self, expression: str, value: Any, path: str) -> None:
        """A slot of a function or module; what is read off a module there is guarded by its chains."""
        if isinstance(value, ModuleType):
            self.checks.identical(expression, value, path)
        else:
            self.slot(expression, value, path)

    def enter(self, value: Any, path: str) -> None:
        """Guards what an object holds; the object itself is the recorded one.

        Args:
            value: the object.
            path: its name, for people.

        Raises:
            Unrecordable: it cannot be watched.
        """
        if id(value) in self.entered:
            return
        self.entered[id(value)] = value
        kind = type(value)
        if kind is FunctionType:
            self.function(value, path)
        elif kind is MethodType:
            self.slot(None, value.__self__, _owner(path))
            self.slot(None, value.__func__, path)
        elif isinstance(value, _GETTERS):
            self._getter(value, path)
        elif kind is _LRU:
            if isinstance(value.__wrapped__, FunctionType):
                self.force(value.__wrapped__)
            self.slot(None, value.__wrapped__, path)
        elif isinstance(value, functools.partial):
            for part in ("func", "args", "keywords"):
                self.slot(None, getattr(value, part), path)
        elif isinstance(value, ModuleType):
            self.escaped(value, self.user_names)
        elif isinstance(value, INERT) or f"{kind.__module__}.{kind.__qualname__}" in INERT_NAMES:
            owner = getattr(value, "__self__", None)
            if owner is not None and not isinstance(owner, (ModuleType, type)):
                self.slot(None, owner, _owner(path))
        else:
            enter_object(self, value, path)

    def runs(self, code: CodeType) -> bool:
        """Whether a function's code ran, or may have run unseen.

        Args:
            code: a code object.

        Returns:
            True if what it reads has to be guarded.
        """
        return self.watch.ran(code) or id(code) in self.forced

    def force(self, function: FunctionType) -> None:
        """Counts a function as having run: a cache may have run it earlier, or a thread that no watch sees.

        Args:
            function: the function.

        Raises:
            Again: it had not counted so far.
        """
        if self.runs(function.__code__):
            return
        for code in nested_codes(function.__code__):
            self.forced[id(code)] = code
            self._extra_names |= names_of(code)
        raise Again

    def _getter(self, getter: Any, path: str) -> None:
        made = getter.__reduce__()
        parts = made[1] if not isinstance(made[0], functools.partial) else (*made[0].args, *made[0].keywords.values(), *made[1])
        names = {name for part in parts if isinstance(part, str) for name in part.split(".")}
        if self.names is not None and not names <= self.names:
            self._extra_names |= names
            raise Again
        for part in parts:
            self.slot(None, part, path)

    def function(self, function: FunctionType, path: str) -> None:
        """Guards what a function reads: code, defaults, attributes, closure, globals.

        Args:
            function: a Python function; one that did not run is guarded by its identity alone, and its attributes.
            path: its name, for people.
        """
        library = is_library_function(function)
        if library and is_importable(function):
            self.found.add(id(function.__code__))
            return
        name = self.checks.bind(function)
        if not library:
            self.attributes(function, f"{name}.__dict__", function.__dict__, path)
        if not self.runs(function.__code__):
            if not self._forcing:
                return
            self.force(function)
        outer = self._forcing
        self._forcing = outer or not self.watch.ran(function.__code__)
        self._reads(function, name, path, library)
        self._forcing = outer

    def _reads(self, function: FunctionType, name: str, path: str, library: bool) -> None:
        self.checks.identical(f"{name}.__code__", function.__code__, f"the code of {path}")
        self.slot(f"{name}.__defaults__", function.__defaults__, f"defaults of {path}")
        self.slot(f"{name}.__kwdefaults__", function.__kwdefaults__, f"keyword defaults of {path}")
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._cell(variable, cell, function)
        for code in nested_codes(function.__code__):
            self.found.add(id(code))
            if not library and (code is function.__code__ or self.runs(code)):
                self.code_globals(code, function.__globals__)

    def _cell(self, variable: str, cell: CellType, function: FunctionType) -> None:
        name = self.checks.bind(cell)
        key = (id(cell), "")
        if key in self._globals:
            return
        self._globals.add(key)
        path = f"closure {variable}"
        try:
            value = cell.cell_contents
        except ValueError:
            self.checks.add("", f"cell({name}) is not ABSENT", path)
            return
        self._place(f"{name}.cell_contents", value, path)
        if isinstance(value, ModuleType):
            for code in nested_codes(function.__code__):
                self.chains(value, facts_of(code), variable)

    def code_globals(self, code: CodeType, names: dict[str, Any]) -> None:
        """Guards the globals that a code object looks up.

        Args:
            code: the code.
            names: its global dictionary.
        """
        facts = facts_of(code)
        for imported in facts.imports:
            top = sys.modules.get(imported.partition(".")[0])
            for module in (top, sys.modules.get(imported)):
                if module is not None:
                    known = self.checks.bind(sys.modules)
                    self._place(f"{known}[{module.__name__!r}]", module, f"module {module.__name__}")
                    self.escaped(module, facts.names)
        for name in facts.globals:
            self._global(name, names, facts)

    def _global(self, name: str, names: dict[str, Any], facts: CodeFacts) -> None:
        value = names.get(name, ABSENT)
        if (id(names), name) not in self._globals:
            self._globals.add((id(names), name))
            table = self.checks.bind(names)
            if value is not ABSENT:
                self._place(f"{table}[{name!r}]", value, f"global {name}")
            elif name in _BUILTINS:
                found, known = self.checks.bind(_BUILTINS), self.checks.bind(_BUILTINS[name])
                self.checks.add("", f"{name!r} in {table} or {found}[{name!r}] is not {known}", f"builtin {name}")
            else:
                self.checks.add("", f"{name!r} in {table}", f"global {name}")
        if isinstance(value, ModuleType):
            self.chains(value, facts, name)

    def chains(self, module: ModuleType, facts: CodeFacts, name: str) -> None:
        """Guards the attributes that code reads off a module by chains such as `torch.nn.functional.relu`.

        Args:
            module: the module that the chain starts from.
            facts: facts of the reading code.
            name: the variable that holds the module there.
        """
        for chain in facts.chains.get(name, ()):
            current: Any = module
            path = name
            for attribute in chain:
                if not isinstance(current, ModuleType):
                    break
                path = f"{path}.{attribute}"
                current = self.module_attribute(current, attribute, path)
            if isinstance(current, ModuleType):
                self.escaped(current, self.user_names)

    def module_attribute(self, module: ModuleType, name: str, path: str) -> Any:
        """Guards one attribute of a module.

        Args:
            module: the module.
            name: the attribute's name.
            path: what it is, for people.

        Returns:
            The attribute's value, or a marker if there is none.

        Raises:
            Unrecordable: it draws random numbers outside torch.
        """
        table = vars(module)
        value = table.get(name, ABSENT)
        if module.__name__.startswith("numpy.random") or (module.__name__ in ("random", "secrets") and value is not ABSENT):
            raise Unrecordable(f"{path} draws random numbers that no graph can draw again")
        if (id(table), name) not in self._globals:
            self._globals.add((id(table), name))
            if value is not ABSENT:
                self._place(f"{self.checks.bind(table)}[{name!r}]", value, f"global {path}")
            elif not is_library(module.__name__):
                self.checks.add("", f"{name!r} in {self.checks.bind(table)}", f"global {path}")
        return value

    def escaped(self, module: ModuleType, names: frozenset[str]) -> None:
        """Guards a module that code keeps as a value, so that any name of that code may be read off it.

        Args:
            module: the module.
            names: names in the code.
        """
        own = not is_library(module.__name__)
        if (id(module), "") in self._globals:
            return
        self._globals.add((id(module), ""))
        for name in list(vars(module)):
            if name in names or (own and self.wide and not name.startswith("__")):
                value = self.module_attribute(module, name, f"{module.__name__}.{name}")
                if isinstance(value, ModuleType):
                    self.escaped(value, names)

    def attributes(self, owner: Any, table: str, present: Any, path: str) -> None:
        """Guards the wanted entries of an instance dictionary, and that no other wanted one appears.

        Args:
            owner: the object.
            table: how generated code reaches the dictionary.
            present: the dictionary.
            path: the owner's name, for people.
        """
        relevant = self.relevant(owner, present)
        failing = f"{differs(self.checks, table, present, relevant)} and not settled({table}, "
        failing += f"{self.checks.bind(frozenset(relevant))}, {self.checks.bind(self.filter_of(owner))})"
        self.checks.add("", failing, f"the attributes of {path}")
        for name in relevant:
            self.slot(f"{table}[{name!r}]", present[name], f"{path}.{name}")

    def filter_of(self, owner: Any) -> frozenset[str] | None:
        """The attribute names that matter of an object.

        Args:
            owner: the object.

        Returns:
            `_state_fields_` of its class, or the names in the code that ran; None for all.
        """
        fields = getattr(type(owner), "_state_fields_", None)
        if fields is not None:
            return frozenset(fields)
        declared: tuple[str, ...] = tuple(getattr(type(owner), "__dataclass_fields__", ()))
        declared += tuple(getattr(type(owner), "__match_args__", ()))
        if isinstance(owner, enum.Enum):
            declared = ("_value_", "_name_")
        return self.names.union(declared) if self.names is not None else None

    def relevant(self, owner: Any, present: dict[str, Any]) -> list[str]:
        """The entries of an instance dictionary that matter.

        Args:
            owner: the object.
            present: its dictionary.

        Returns:
            Their names.
        """
        names = self.filter_of(owner)
        return [name for name in present if is_relevant(name, names)]


def _owner(path: str) -> str:
    return path.rpartition(".")[0] or (path if path == "self" else f"the object of {path}")
