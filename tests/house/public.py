"""What is public: `hesse.__all__`, the `__all__` of its public modules, and the public members of classes."""

from __future__ import annotations

import enum
import inspect
import re
import types
from collections.abc import Iterator
from typing import Any

import hesse


def public_names(module: types.ModuleType = hesse, prefix: str = "hesse") -> Iterator[tuple[str, Any]]:
    """``(dotted name, object)`` of everything public, modules opened."""
    for name in sorted(getattr(module, "__all__", ())):
        value = getattr(module, name)
        yield f"{prefix}.{name}", value
        if isinstance(value, types.ModuleType):
            yield from public_names(value, f"{prefix}.{name}")


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """``(name, object)`` of the public methods and properties that a class adds to its public bases."""
    public = {value for _, value in public_names() if inspect.isclass(value)}
    for name in sorted(dir(cls)):
        owner = next((base for base in cls.__mro__ if name in vars(base)), object)
        member = inspect.getattr_static(cls, name)
        inherited = any(repeats(name, member, base) for base in cls.__mro__[1:] if base in public)
        if not name.startswith("_") and not inherited and owner.__module__.partition(".")[0] == "hesse":
            yield name, member


def repeats(name: str, member: Any, base: type) -> bool:
    """Whether a base has the member with the same signature."""
    other = inspect.getattr_static(base, name, None)
    return other is not None and signature(unwrap(member)) == signature(unwrap(other))


def unwrap(member: Any) -> Any:
    """The function behind a property, a class method or a static method."""
    if isinstance(member, property):
        return member.fget
    return member.__func__ if isinstance(member, (classmethod, staticmethod)) else member


def signature(value: Any) -> str:
    """The signature as text, without addresses of objects."""
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return ""
    text = re.sub(r"ForwardRef\('(.*?)'\)", r"\1", text)
    text = re.sub(r"<(?:function|class) '?([\w.<>]+)'?(?: at 0x[0-9a-f]+)?>", r"\1", text)
    return re.sub(r"""(: |-> )(["'])(.*?)\2""", r"\1\3", text)  # annotations without quotes


def lines() -> list[str]:
    """One line for each public name and for each public member of a public class."""
    result = []
    for name, value in public_names():
        if inspect.isclass(value):
            bases = ", ".join(base.__qualname__ for base in value.__bases__ if base is not object)
            shown = "" if issubclass(value, enum.Enum) else signature(value).removesuffix(" -> None")
            result.append(f"class {name}{shown}{f' from {bases}' if bases else ''}")
            for member, attribute in members(value):
                kind = "property " if isinstance(attribute, property) else ""
                shown = signature(unwrap(attribute)) if callable(unwrap(attribute)) else ""
                result.append(f"    {kind}{member}{shown}")
        elif isinstance(value, types.ModuleType):
            result.append(f"module {name}")
        else:
            result.append(f"{name}{signature(value) if callable(value) else f': {type(value).__name__}'}")
    return result
