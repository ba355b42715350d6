"""`functionalize`: the modules of a package as pure functions."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from hesse.autodiff import functional
from hesse.core.errors import LeafError, MissingExtraError

Pure = Callable[..., Any]


class _WithoutParameters:
    """``f(*inputs, **inputs)`` of a module that has no parameters to train, such as a loss."""

    def __init__(self, f: Pure, name: str) -> None:
        self._f, self._name = f, name

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self._f({}, *inputs, **named)

    def __repr__(self) -> str:
        return f"functionalize({self._name})"


class _Constructor:
    """A module's class whose instances are pure functions."""

    def __init__(self, cls: type[nn.Module]) -> None:
        functools.update_wrapper(self, cls, updated=())
        self._cls = cls
        self.__signature__ = inspect.signature(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _pure(self._cls(*args, **kwargs))

    def __repr__(self) -> str:
        return f"functionalize({self._cls.__module__}.{self._cls.__qualname__})"


class FunctionalPackage:
    """A package's names, in which each class of modules makes pure functions; made by `functionalize`."""

    def __init__(self, package: ModuleType) -> None:
        self._package = package

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["_package"], name) if "_package" in self.__dict__ else object.__getattribute__(self, name)
        return _Constructor(value) if isinstance(value, type) and issubclass(value, nn.Module) else value

    def __reduce__(self) -> tuple[Any, ...]:
        return functionalize, (self._package.__name__,)

    def __dir__(self) -> list[str]:
        return dir(self._package)

    def __repr__(self) -> str:
        return f"functionalize({self._package.__name__})"


def functionalize(
    package: str | ModuleType | nn.Module,
) -> FunctionalPackage | Pure | tuple[Pure, dict[str, Tensor]]:
    """A package's modules, or one module, as pure functions.

    ``fnn = functionalize("torch.nn")`` has every name of the package. ``fnn.Linear(100, 50)`` gives ``(f, params)``, where
    ``f(params, *inputs)`` is the module with these parameters; ``fnn.ReLU()`` gives ``f(*inputs)``, and ``fnn.MSELoss()``
    gives ``f(input, target)``. Names of the package that are no classes of modules are handed on.

    Args:
        package: a package, its name ("nn" is "torch.nn"), or a module of one's own, a loss too.

    Returns:
        For a package its `FunctionalPackage`. For a module with trainable parameters ``(f, params)`` as from
        `hesse.functional`: parameters by name, detached; buffers are copied at each call. For any other module ``f``.
        Calls share nothing: a function may be used any number of times in one graph.

    Raises:
        MissingExtraError: the package cannot be imported.
        LeafError: neither a package, nor a name, nor a module.

    Cost: one forward pass a call.
    """
    if isinstance(package, nn.Module):
        return _pure(package)
    if isinstance(package, ModuleType):
        return FunctionalPackage(package)
    asked = "functionalize(package) takes a package, its name, or a module."
    if not isinstance(package, str):
        found = f"the class {package.__name__}" if isinstance(package, type) else f"a {type(package).__name__}"
        raise LeafError(asked, found, "such as 'torch.nn', torch.nn or nn.Linear(3, 2)")
    try:
        return FunctionalPackage(importlib.import_module("torch.nn" if package == "nn" else package))
    except (ImportError, ValueError) as error:
        raise MissingExtraError(
            asked, f"'{package}', which cannot be imported: {error}", "install it, or correct the name"
        ) from error


def _pure(module: nn.Module) -> Any:
    f, params = functional(module)
    return (f, params) if params else _WithoutParameters(f, type(module).__name__)
