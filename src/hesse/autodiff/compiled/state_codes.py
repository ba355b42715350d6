"""What a code object can read, taken from its bytecode: globals, attribute names, chains such as `torch.nn.functional.relu`."""

from __future__ import annotations

import dis
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch

GLOBAL_OPS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "STORE_GLOBAL", "DELETE_GLOBAL"})
DEREF_OPS = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
ATTRIBUTE_OPS = frozenset({"LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR"})
PLAIN_LOADS = frozenset(
    {"LOAD_CONST", "LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_SMALL_INT"}
)
_IDENTIFIER = re.compile(r"[^\W\d]\w*")
SKIPPED_OPS = frozenset({"PRECALL", "CACHE", "RESUME", "EXTENDED_ARG", "PUSH_NULL", "NOP"})

_SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
_ENGINE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_DISPATCHING = ("fx/", "_ops.py", "_library", "_dynamo", "_inductor", "_subclasses", "_prims", "utils/_python_dispatch.py")
_TORCH_ENGINE = tuple(_TORCH + part.replace("/", os.sep) for part in _DISPATCHING)
_NUMPY = os.path.dirname(os.path.abspath(np.__file__)) + os.sep
_STDLIB = tuple(
    {os.path.join(os.path.realpath(sysconfig.get_path(key)), "") for key in ("stdlib", "platstdlib")}
    | {os.path.join(sysconfig.get_path(key), "") for key in ("stdlib", "platstdlib")}
)
_OTHER_LIBRARIES = frozenset({"scipy", "functorch", "torchgen", "optree", "typing_extensions", "sympy", "mpmath", "networkx"})
LIBRARIES = _OTHER_LIBRARIES | {"torch", "hesse", "numpy", "builtins"} | (sys.stdlib_module_names - {"__main__"})


@cache
def kind_of_file(filename: str) -> str:
    """Whose code a file holds.

    Args:
        filename: `co_filename` of a code object.

    Returns:
        "engine" (hesse's tracer and torch's dispatch machinery, whose reads do not count), "hesse", "torch", "numpy",
        "stdlib", "library" (what torch itself is built on) or "user".
    """
    if filename.startswith("<frozen"):
        return "stdlib"
    if filename.startswith("<"):
        return "user"
    if filename.startswith((_ENGINE, *_TORCH_ENGINE)):
        return "engine"
    for start, kind in ((_SOURCE, "hesse"), (_TORCH, "torch"), (_NUMPY, "numpy")):
        if filename.startswith(start):
            return kind
    path = os.path.realpath(filename)
    package = re.search(r"(?:site|dist)-packages[/\\](\w+)", path)
    if package and package[1] in _OTHER_LIBRARIES:
        return "library"
    inside = any(path.startswith(part) or filename.startswith(part) for part in _STDLIB)
    return "stdlib" if inside and "site-packages" not in path and "dist-packages" not in path else "user"


def is_library(module: str | None) -> bool:
    """Whether a module's own state is taken as constant.

    Args:
        module: `__module__` of a function or class.

    Returns:
        True for torch, hesse, numpy, scipy and the standard library.
    """
    return (module or "").partition(".")[0] in LIBRARIES


def kind_of_code(code: CodeType, names: dict[str, Any]) -> str:
    """Whose code a frame runs.

    Args:
        code: the code.
        names: its globals, which tell where code made from text (a data class's methods) belongs.

    Returns:
        As `kind_of_file`.
    """
    kind = kind_of_file(code.co_filename)
    if kind != "user" or not code.co_filename.startswith("<"):
        return kind
    module = names.get("__name__")
    return "library" if is_library(module) or str(module).startswith("namedtuple_") else kind  # whose __new__ only fills


def is_library_function(function: FunctionType) -> bool:
    """Whether a function belongs to a library, so that its globals are taken as constant.

    Args:
        function: a Python function.

    Returns:
        True for functions of torch, hesse, numpy, scipy and the standard library.
    """
    return is_library(function.__module__) and kind_of_code(function.__code__, function.__globals__) != "user"


def is_importable(function: FunctionType) -> bool:
    """Whether a function is the one found under its name in its module, and so closes over nothing of the user's.

    Args:
        function: a function of a library.

    Returns:
        True if its module holds it.
    """
    owner: Any = sys.modules.get(function.__module__)
    for part in function.__qualname__.split("."):
        owner = getattr(owner, part, None)
    return owner is function or getattr(owner, "__func__", None) is function


@dataclass(frozen=True)
class CodeFacts:
    """What one code object, without those nested in it, can read.

    Args:
        globals: names looked up or stored as globals.
        names: attribute names, and string constants that could be one (for `getattr`).
        chains: global or closed-over name -> the attribute chains read off it.
        imports: modules imported inside.
        identity: `is` or `in` occur with something other than a constant.
    """

    globals: tuple[str, ...]
    names: frozenset[str]
    chains: dict[str, frozenset[tuple[str, ...]]]
    imports: frozenset[str]
    identity: bool


_facts: dict[int, tuple[CodeType, CodeFacts]] = {}


def facts_of(code: CodeType) -> CodeFacts:
    """Facts of one code object, from its bytecode; remembered.

    Args:
        code: a code object.

    Returns:
        What it can read by itself.
    """
    known = _facts.get(id(code))
    if known is not None and known[0] is code:
        return known[1]
    facts = _read(code)
    if len(_facts) > 4096:
        _facts.clear()
    _facts[id(code)] = (code, facts)
    return facts


def _read(code: CodeType) -> CodeFacts:
    instructions = [i for i in dis.get_instructions(code) if i.opname not in SKIPPED_OPS]
    read: dict[str, None] = {}
    chains: dict[str, set[tuple[str, ...]]] = {}
    imports: set[str] = set()
    identity = False
    for position, one in enumerate(instructions):
        if one.opname in GLOBAL_OPS:
            read[one.argval] = None
        if one.opname in GLOBAL_OPS or one.opname in DEREF_OPS:
            chains.setdefault(one.argval, set()).add(_chain(instructions, position))
        elif one.opname == "IMPORT_NAME":
            imports.add(one.argval)
        elif one.opname in ("IS_OP", "CONTAINS_OP"):
            identity = identity or instructions[position - 1].opname != "LOAD_CONST"
    return CodeFacts(tuple(read), names_of(code), {k: frozenset(v) for k, v in chains.items()}, frozenset(imports), identity)


def _chain(instructions: list[dis.Instruction], position: int) -> tuple[str, ...]:
    chain: list[str] = []
    for following in instructions[position + 1 :]:
        if following.opname not in ATTRIBUTE_OPS:
            break
        chain.append(following.argval)
    return tuple(chain)


def names_of(code: CodeType) -> frozenset[str]:
    """Attribute names that a code object mentions.

    Args:
        code: a code object.

    Returns:
        `co_names`, and the identifiers in its string constants ("rate" for `"{0.rate}"`).
    """
    texts: list[str] = []
    for constant in code.co_consts:
        if isinstance(constant, str):
            texts.append(constant)
        elif isinstance(constant, (tuple, frozenset)):
            texts += [item for item in constant if isinstance(item, str)]
    return frozenset(code.co_names).union(*map(_IDENTIFIER.findall, texts))


def nested_codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and all those nested in it.

    Args:
        code: a code object.

    Yields:
        The code object itself first, then the code of inner functions, classes and comprehensions.
    """
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested_codes(constant)


@lru_cache(maxsize=4096)
def names_literal(code: CodeType, offset: int) -> bool:
    """Whether the call at an offset passes its second argument, the attribute name, as a literal.

    Args:
        code: the calling code.
        offset: bytecode offset of the call (`frame.f_lasti`).

    Returns:
        True if the name stands in the code, and so among `names_of`; False if it may be computed.
    """
    instructions = [i for i in dis.get_instructions(code) if i.opname not in SKIPPED_OPS]
    at = next((k for k, one in enumerate(instructions) if one.offset >= offset), None)
    if at is None or at < 3 or instructions[at].opname != "CALL" or instructions[at].arg not in (2, 3):
        return False
    before = at - 1
    if instructions[at].arg == 3:
        if instructions[before].opname not in PLAIN_LOADS:
            return False
        before -= 1
    return instructions[before].opname == "LOAD_CONST" and isinstance(instructions[before].argval, str)
