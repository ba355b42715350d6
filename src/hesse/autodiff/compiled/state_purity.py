"""Which C functions a recorded run may call: those whose result depends on nothing but what they are given."""

from __future__ import annotations

import collections
import datetime
import re
import threading
from types import GeneratorType, MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch

_PURE_MODULES = frozenset(
    {
        "math", "cmath", "operator", "_operator", "_functools", "functools", "itertools", "_collections", "_bisect", "bisect",
        "_heapq", "heapq", "_struct", "_statistics", "_abc", "_weakref", "_typing", "typing", "_string", "binascii",
    }
)  # fmt: skip
_IMPURE_BUILTINS = {
    "print": "prints", "input": "waits for input", "open": "opens a file", "exec": "executes text", "eval": "evaluates text",
    "compile": "compiles text", "globals": "takes the dictionary of globals", "id": "takes the address of an object",
    "breakpoint": "stops in the debugger", "__import__": "imports by a computed name", "memoryview": "takes a view of memory",
}  # fmt: skip
_WIDE_BUILTINS = frozenset({"vars", "dir"})
_WIDE_METHODS = frozenset({"__dir__", "__reduce_ex__", "__reduce__", "__getstate__", "__getattribute__"})
_PURE_TYPES = (
    object, type, str, bytes, bytearray, int, float, complex, bool, list, tuple, dict, set, frozenset, range, slice, property,
    collections.deque, collections.OrderedDict, collections.defaultdict, MappingProxyType, GeneratorType, BaseException,
    datetime.timedelta, re.Pattern, re.Match,
)  # fmt: skip
_PURE_KINDS = frozenset(
    {
        "list_iterator", "tuple_iterator", "dict_keys", "dict_values", "dict_items", "dict_keyiterator", "set_iterator", "zip",
        "enumerate", "map", "filter", "reversed", "cell", "code", "function", "method", "staticmethod", "classmethod",
        "coroutine", "RLock", "lock",
    }
)  # fmt: skip
_CLOSED_METHODS = {"data_ptr": "takes an address", "numpy": "reads data into numpy", "__dlpack__": "exports data"}
_IMPURE_TORCH = frozenset({"Generator"})
_IMPURE_STDLIB = frozenset({"time", "posix", "nt", "_io", "_socket", "_random", "_ssl", "select", "_posixsubprocess"})
_RANDOM_FILES = frozenset({"random.py", "cuda/random.py"})
_RANDOM_SETTERS = frozenset({"seed", "seed_all", "manual_seed", "manual_seed_all", "set_rng_state", "set_rng_state_all"})
_RANDOM_FUNCTIONS = frozenset({"seed", "initial_seed", "manual_seed", "get_rng_state", "set_rng_state", "fork_rng"})

_OF_THREADS = frozenset({"current_thread", "currentThread", "main_thread", "enumerate", "active_count"})


def owner_of(function: Any) -> tuple[str, type | None]:
    """Where a C function comes from.

    Args:
        function: a built-in function or bound built-in method, as `sys.setprofile` hands it over.

    Returns:
        The module's name, and the type whose method it is (None for a function of a module).
    """
    owner = getattr(function, "__self__", None)
    if owner is None or isinstance(owner, ModuleType):
        return function.__module__ or (owner.__name__ if owner is not None else "torch"), None
    kind = owner if isinstance(owner, type) else type(owner)
    name = function.__name__
    defining = next((base for base in kind.__mro__ if name in base.__dict__), kind)
    return defining.__module__, defining


def impurity(function: Any) -> str | None:
    """Why a C function that user code calls cannot be recorded.

    Args:
        function: a built-in function or bound built-in method.

    Returns:
        What it does, as a verb phrase ("prints"), "wide" where it reads attributes whose names cannot be known, and None for a
        function whose result depends on its arguments alone.
    """
    module, kind = owner_of(function)
    name = function.__name__
    root = module.partition(".")[0]
    if kind is None:
        return _module_function(module, root, name)
    if name in _WIDE_METHODS:
        return "wide"
    if issubclass(kind, torch.Tensor) or kind.__name__ == "TensorBase":
        return _CLOSED_METHODS.get(name)
    if kind in _PURE_TYPES or (root == "builtins" and kind.__name__ in _PURE_KINDS) or issubclass(kind, BaseException):
        return None
    if root == "_thread" or (root == "torch" and kind.__name__ not in _IMPURE_TORCH):
        return None
    if root == "numpy" and issubclass(kind, (np.ndarray, np.generic)):
        return None if name not in ("tofile", "dump") else "writes a file"
    return f"calls {kind.__qualname__}.{name}, which may depend on more than its arguments"


def _module_function(module: str, root: str, name: str) -> str | None:
    if root in ("builtins", "io", "_io"):
        return "wide" if name in _WIDE_BUILTINS else _IMPURE_BUILTINS.get(name)
    if root == "torch" or module in _PURE_MODULES or (module == "_thread" and name in ("allocate_lock", "RLock")):
        return None
    if root == "numpy" and not module.startswith("numpy.random") and "file" not in name:
        return None
    return f"calls {module}.{name}, which may depend on more than its arguments"


def library_impurity(function: Any) -> str | None:
    """Why a C function that the standard library calls on behalf of user code cannot be recorded.

    Args:
        function: a built-in function or bound built-in method.

    Returns:
        What it does, "wide" where it reads attributes by computed names, or None.
    """
    module, kind = owner_of(function)
    name = function.__name__
    if name in _WIDE_METHODS or (kind is None and module == "builtins" and name in _WIDE_BUILTINS):
        return "wide"
    if name in ("start_new_thread", "start_joinable_thread", "_start_new_thread"):
        return "starts a thread, which cannot be watched"
    if module.partition(".")[0] in _IMPURE_STDLIB and name not in ("fspath", "__init__"):
        return f"calls {module}.{name}"
    if kind is None and module == "builtins" and name in ("print", "open", "input"):
        return _IMPURE_BUILTINS[name]
    return None


def sets_random_state(filename: str, name: str) -> bool:
    """Whether a Python function of torch sets the state of a default random generator, whoever calls it.

    Args:
        filename: file of the function.
        name: its name.

    Returns:
        True for `torch.manual_seed`, `torch.set_rng_state` and the like.
    """
    if name not in _RANDOM_SETTERS:
        return False
    return filename.replace("\\", "/").rpartition("/torch/")[2] in _RANDOM_FILES


def python_impurity(filename: str, name: str) -> str | None:
    """Why a Python function of torch, or of `threading`, that user code calls cannot be recorded.

    Args:
        filename: file of the function.
        name: its name.

    Returns:
        What it does, or None.
    """
    if name in _OF_THREADS and filename == threading.__file__:
        return f"asks which thread it runs on (threading.{name})"
    tail = filename.replace("\\", "/").rpartition("/torch/")[2]
    if tail in _RANDOM_FILES and name in _RANDOM_FUNCTIONS:
        return f"calls torch.{name}, which sets or reads the state of the random generator"
    if name == "backward" and tail in ("_tensor.py", "autograd/__init__.py"):
        return "calls backward(), which accumulates into .grad"
    return None
