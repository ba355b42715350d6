"""The options of `grad`, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from hesse.autodiff.compiled.mode import Mode, require_mode
from hesse.core.errors import StructureError

Profiling = Literal["off", "summary", "detailed"]
ASKED = "grad(f, ...) makes a function that returns gradients and values."


@dataclass(frozen=True)
class GradOptions:
    """What `grad` was asked for; the fields are its keyword arguments.

    Raises:
        StructureError: a value that is none of the possible ones, or two that exclude each other.
    """

    argnums: int | tuple[int, ...] = 0
    compile: Mode | None = None
    with_forward: bool = True
    with_gradients: bool = True
    partial_grad: bool = False
    stable_gradients: bool = False
    debug_hook: Callable[[Any], Any] | None = None
    signature: Callable[..., str | None] | None = None
    profile: Profiling = "off"

    def __post_init__(self) -> None:
        numbers = self.argnums if isinstance(self.argnums, tuple) else (self.argnums,)
        if not numbers or any(type(n) is not int for n in numbers) or len(set(numbers)) < len(numbers):
            raise StructureError(ASKED, f"argnums={self.argnums!r}", "pass a position, or a tuple of different ones")
        if self.compile is not None:
            require_mode(self.compile, f"{ASKED[:-1]}, compiled or not.")
        for name in ("with_forward", "with_gradients", "partial_grad", "stable_gradients"):
            if not isinstance(value := getattr(self, name), bool):
                raise StructureError(ASKED, f"{name}={value!r}", "pass True or False")
        if not (self.with_forward or self.with_gradients):
            raise StructureError(ASKED, "with_forward=False and with_gradients=False leave nothing", "leave one of them True")
        for name in ("partial_grad", "stable_gradients"):
            if getattr(self, name) and not self.with_gradients:
                raise StructureError(ASKED, f"{name}=True with with_gradients=False", "ask for gradients, or leave it out")
        for name in ("debug_hook", "signature"):
            if (value := getattr(self, name)) is not None and not callable(value):
                raise StructureError(ASKED, f"{name} is a {type(value).__name__}", "pass a function, or None")
        if self.profile not in get_args(Profiling):
            raise StructureError(
                ASKED, f"profile={self.profile!r}", f"choose one of {', '.join(map(repr, get_args(Profiling)))}"
            )

    def __str__(self) -> str:
        shown = [(field.name, getattr(self, field.name)) for field in fields(self) if field.name != "argnums"]
        defaults = {field.name: field.default for field in fields(self)}
        parts = [f"argnums={self.argnums!r}"]
        parts += [f"{name}={getattr(v, '__qualname__', repr(v))}" for name, v in shown if v != defaults[name]]
        return ", ".join(parts)

    def positions(self, count: int) -> tuple[int, ...]:
        """The positions to differentiate by in a call of so many positional arguments, none negative.

        Raises:
            StructureError: a position that is not there, or that is named twice.
        """
        numbers = self.argnums if isinstance(self.argnums, tuple) else (self.argnums,)
        found = tuple(n + count if n < 0 else n for n in numbers)
        if any(not 0 <= n < count for n in found) or len(set(found)) < len(found):
            remedy = "pass the arguments to differentiate by as positional ones"
            raise StructureError(ASKED, f"argnums={self.argnums!r} in a call of {count} positional arguments", remedy)
        return found

    def placed(self, grads: Any) -> Any:
        """What a call gives for the gradients: a tuple of them where `argnums` is one.

        Args:
            grads: those by the only position, or a dict of those by each.
        """
        if type(self.argnums) is not tuple:
            return grads
        return tuple(grads.values()) if len(self.argnums) > 1 else (grads,)
