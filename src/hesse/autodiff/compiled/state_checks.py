"""The guards of one recorded run as one generated function: read every slot, compare, hand back the present tensors."""

from __future__ import annotations

import builtins
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor

from hesse.autodiff.compiled.state_values import ABSENT, is_constant, is_relevant, same, same_array, same_items
from hesse.autodiff.compiled.unrecordable import Unrecordable

MOST_CHECKS = 20_000


def _slot(descriptor: Any, owner: Any) -> Any:
    try:
        return descriptor.__get__(owner, type(owner))
    except AttributeError:
        return ABSENT


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return ABSENT


def _settled(present: Any, relevant: frozenset[str], names: frozenset[str] | None) -> bool:
    return {key for key in present if is_relevant(key, names)} == relevant


_HELPERS: dict[str, Any] = {
    "same": same, "same_items": same_items, "same_array": same_array, "slot": _slot, "cell": _cell, "settled": _settled,
    "type": type, "list": list, "id": id, "len": len, "ABSENT": ABSENT, "dict_items": dict.__getitem__,
    "dict_keys": dict.__iter__,
    "list_items": list.__getitem__, "list_length": list.__len__, "ordered_keys": OrderedDict.__iter__,
    "attribute": object.__getattribute__, "set_items": set.__iter__,
}  # fmt: skip


class Checks:
    """Lines of the check, the objects they name, and the tensors they collect.

    Two functions are made of the lines: the fast one hands back None at the first failure, the other one says which it was.
    """

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str]] = []
        self.tensors: list[tuple[str, Tensor]] = []
        self._objects: dict[str, Any] = dict(_HELPERS)
        self._names: dict[int, str] = {}

    def bind(self, value: Any) -> str:
        """A name for an object in the generated code; the object is kept alive.

        Args:
            value: any object.

        Returns:
            The name.
        """
        name = self._names.get(id(value))
        if name is None:
            name = self._names[id(value)] = f"k{len(self._names)}"
            self._objects[name] = value
        return name

    def add(self, setup: str, failing: str, path: str) -> None:
        """Adds one test.

        Args:
            setup: a statement that runs before it, or "".
            failing: an expression that is true if the state differs.
            path: what it reads, for people.

        Raises:
            Unrecordable: there are too many tests already.
        """
        if len(self.lines) >= MOST_CHECKS:
            raise Unrecordable(f"what the function reads is too large to watch: over {MOST_CHECKS} values, the last one {path}")
        self.lines.append((setup, failing, path))

    def constant(self, expression: str, value: Any, path: str) -> None:
        """Tests that a slot holds the same constant.

        Args:
            expression: how the slot is read.
            value: the recorded constant.
            path: what it is, for people.
        """
        name = self.bind(value)
        self.add(f"v = {expression}", f"v is not {name} and not same(v, {name})", path)

    def identical(self, expression: str, value: Any, path: str) -> None:
        """Tests that a slot holds the very same object.

        Args:
            expression: how the slot is read.
            value: the recorded object.
            path: what it is, for people.
        """
        self.add(f"v = {expression}", f"v is not {self.bind(value)}", path)

    def build(self) -> Callable[[], list[Tensor] | None]:
        """Makes the check.

        Returns:
            A function without arguments: the present tensors, in the order of `tensors`, or None if anything differs.
        """
        body = [f"{setup}\n  if {failing}: return None" if failing else setup for setup, failing, _ in self.lines]
        collected = ", ".join(f"t{k}" for k in range(len(self.tensors)))
        return self._compiled(body, f"return [{collected}]", "return None")

    def build_report(self) -> Callable[[], tuple[int, Any] | None]:
        """Makes the function that says what differs.

        Returns:
            A function without arguments: (index of the first failing line, what was read there), or None if nothing differs.
        """
        body = []
        for position, (setup, failing, _) in enumerate(self.lines):
            body.append(f"i = {position}\n  v = ABSENT\n  {setup or 'pass'}\n  if {failing or 'False'}: return i, v")
        return self._compiled(body, "return None", "return i, ABSENT")

    def _compiled(self, body: list[str], last: str, failed: str) -> Callable[[], Any]:
        lines = "\n".join("  " + line for line in [*body, last])
        source = f"def check():\n try:\n{lines}\n except Exception:\n  {failed}\n"
        names = {**self._objects, "__builtins__": {"Exception": Exception}}
        builtins.exec(builtins.compile(source, "<guards of hesse>", "exec"), names)
        return names["check"]

    def describe(self, position: int, now: Any) -> str:
        """Says what one line found.

        Args:
            position: index of the line.
            now: what it read.

        Returns:
            One phrase, such as "global rate changed: 0.1, now 0.2".
        """
        path = self.lines[position][2]
        expected = self.lines[position][1].partition("not same(v, ")[2].rstrip(")")
        if expected and is_constant(now) and now is not ABSENT:
            return f"{path} changed: {_short(self._objects[expected])}, now {_short(now)}"
        return f"{path} is gone" if now is ABSENT and expected else f"{path} changed"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
