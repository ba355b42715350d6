"""A finding as a short program that needs torch and the function alone."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hesse.check.check_report import Finding
from hesse.check.place import Place
from hesse.check.recipes import (
    ALONG,
    COMPARE,
    COMPLEX,
    DIFFERENCE,
    ELEMENT,
    FORWARD,
    INSIDE,
    LAYOUTS,
    MODULE,
    PRELUDE,
    SECOND,
    SUBSET,
    USES,
)
from hesse.check.written import is_written_out, written
from hesse.core import tree
from hesse.core.tree import Tree

_OWN_TYPE = "own dtype"
_NOT_BY_LEAF = (
    "value", "one tensor", "one element of the cotangent", "second order", "same value", "cotangents unchanged", "expanded",
)  # fmt: skip
_DRAWN = (
    "sum of cotangents", "one element of the cotangent", "second order", "gradient through", "value", "another call",
    "the same tensors", "expanded", "repeated calls",
)  # fmt: skip
_STEPS = {torch.float64: 1e-4, torch.complex128: 1e-4}  # of Richardson's extrapolation, relative to the size of the elements
_SHORT = 2e-2  # in shorter types
_FILLED = re.compile(r"^f = \.\.\.  # fill in: .*\n", re.MULTILINE)
_QUOTED = re.compile(r"'([^']*)'")


def reproducer(f: Callable[[Any], Any], x: Tree, names: list[str], finding: Finding, place: Place) -> str:
    """A program that shows a finding with torch alone.

    It computes where the finding was made, with the same cotangents, in float64 where the function runs there, and prints two
    numbers that ought to be equal: those of the finding where point and cotangents are small enough to be written out.

    Args:
        f, x: the function and its point, as given.
        names: of the leaves.
        finding: to show.
        place: where it was made.

    Returns:
        Python text. Where the function cannot be imported, or a tensor is large, it says what to fill in.
    """
    own = finding.check.startswith(_OWN_TYPE) or not place.runs
    point = _typed(place.x, x) if own else place.x
    function, cotangents = _function(f), written(list(place.cotangents))
    if isinstance(f, nn.Module) and not own and function.startswith("f = ..."):
        function += "\nf.double()"
    code = PRELUDE.format(function=function, x=written(point), cotangents=cotangents)
    if own:
        code += "cotangents = [u.to(y.dtype) for u, y in zip(cotangents, call(leaves))]\n"
    if re.search(r"\b(inf|nan)\b", written([point, *place.cotangents])):
        code = f"from math import inf, nan\n\n{code}"
    told = "".join(f"# {line}\n" for line in str(finding).splitlines())
    body = _Body(names, finding, place, point).text(of_module=isinstance(f, nn.Module))
    return f"{code}\n{told}{_numbers(finding, place, point)}{body}"


def of_module(code: str, name: str, args: str, named: str) -> str:
    """A program whose function calls a module by parameters and inputs, in the type of these.

    Args:
        code: the program; its function is to be filled in.
        name: of the module, and its mode, for the line that is to be filled in.
        args, named: inputs of the call, as Python text.

    Returns:
        The program, in which the module is to be filled in.
    """
    function = MODULE.format(name=name, args=args, named=named)
    return _FILLED.sub(lambda _: function, code.replace("f.double()\n", ""), count=1)


def _numbers(finding: Finding, place: Place, point: Tree) -> str:
    """A comment on the numbers that the program prints."""
    if finding.value is None:
        return ""
    same = is_written_out(point) and is_written_out(list(place.cotangents)) and not finding.check.startswith(_DRAWN)
    if same and place.runs and not place.draws and (finding.index is not None or place.direction is not None):
        return "# the same numbers are printed here, up to the error of differences\n"
    why = "other tensors or directions than the check's" if place.runs else "computed in the own dtype"
    why = "other random numbers than the check's" if place.draws else why
    return f"# the numbers printed here are others ({why}): that they differ from each other is what counts\n"


class _Body:
    """What follows the definitions: a comparison of the kind in which the finding was made."""

    def __init__(self, names: list[str], finding: Finding, place: Place, point: Tree) -> None:
        self._names, self._finding, self._place = names, finding, place
        self._leaves = [t for t in tree.flatten(point)[0] if _moves(t)]
        self._leaf = names.index(finding.leaf) if finding.leaf in names else None

    def text(self, *, of_module: bool) -> str:
        check = self._finding.check
        if "alone require" in check:
            return SUBSET.format(subset=self._indices() or [0]) + self._compare()
        layout, _, what = check.removeprefix("value with ").rpartition(" cotangent" if "cotangent" in check else " input")
        kind = next((k for k in sorted(LAYOUTS, key=len, reverse=True) if layout.startswith(k)), None)
        if kind is not None and layout:
            return self._layout(kind, layout, value=check.startswith("value with"), inside="inside" in what)
        for start in sorted(USES, key=len, reverse=True):
            if check.startswith(start):
                return self._use(USES[start], of_module=of_module) + "\n" + self._compare()
        if check.startswith("forward"):
            return FORWARD.format(direction=self._direction(), unit=self._unit())
        if check.startswith("second order"):
            return SECOND.format(direction=self._direction(), step="1e-4")
        return self._difference()

    def _difference(self) -> str:
        base, step = DIFFERENCE.format(direction=self._direction()), self._step()
        if self._leaf is not None and self._finding.index is not None and self._leaves[self._leaf].is_complex():
            return base + COMPLEX.format(leaf=self._leaf, index=self._finding.index, unit=self._unit(), step=step)
        return base + ALONG.format(unit=self._unit(), step=step)

    def _use(self, text: str, *, of_module: bool) -> str:
        quoted = [self._names.index(name) for name in _QUOTED.findall(self._finding.check) if name in self._names]
        outputs = [self._place.outputs.index(n) for n in _QUOTED.findall(self._finding.check) if n in self._place.outputs]
        first, second = (*quoted, 0, 1)[:2] if len(quoted) > 1 else (0, 1)
        filled = {
            "factor": self._finding.check.rpartition(" ")[2],
            "output": str(outputs[0] if outputs else 0),
            "axis": "-1" if "last axis" in self._finding.check else "0",
            "first": str(first),
            "second": str(second),
            "widen": "f.double()\n" if of_module else "",
        }
        for key, value in filled.items():
            text = text.replace(f"{{{key}}}", value)
        return text

    def _compare(self) -> str:
        leaf, index = self._leaf, self._finding.index
        if leaf is None or self._finding.check.startswith(_NOT_BY_LEAF):
            return COMPARE.format(pairs="list(zip(found, expected))")
        if index is None or self._finding.check.startswith(_DRAWN):
            return COMPARE.format(pairs=f"[(found[{leaf}], expected[{leaf}])]")
        return ELEMENT.format(leaf=leaf, index=index)

    def _indices(self) -> list[int]:
        return [self._names.index(name) for name in _QUOTED.findall(self._finding.check) if name in self._names]

    def _layout(self, kind: str, layout: str, *, value: bool, inside: bool) -> str:
        expression = LAYOUTS[kind].replace("{axis}", layout.rpartition(" ")[2])
        spread = kind == "expanded"
        define = f"def moved(t{', first' if spread else ''}):\n    return {expression}\n\n\n"
        change = "moved(t.clone(), first)" if spread else "moved(t.clone())"
        if inside:
            found, plain = f"inside(lambda t: {change})", f"inside(lambda t: {change}.contiguous())"
            define = INSIDE + define
        else:
            name = "cotangents" if "cotangent" in self._finding.check else "leaves"
            run = "gradient(leaves, {})" if name == "cotangents" else "call({})" if value else "gradient({}, cotangents)"
            found, plain = (run.format(f"[{own} for t in {name}]") for own in (change, f"{change}.contiguous()"))
        if spread:
            loop = f"found, expected = [], []\nfor first in (False, True):\n    found += {found}\n    expected += {plain}\n"
            return define + loop + COMPARE.format(pairs="list(zip(found, expected))")
        return f"{define}found = {found}\nexpected = {plain}\n{self._compare()}"

    def _direction(self) -> str:
        """Lines that define the direction: that of the check, one element, or a random one."""
        leaf, index, direction = self._leaf, self._finding.index, self._place.direction
        if leaf is not None and index is not None:
            return f"direction = [torch.zeros_like(t) for t in leaves]\ndirection[{leaf}][{index}] = {self._unit()}"
        if direction is not None:
            return f"direction = {written(list(direction))}"
        if leaf is not None:
            return f"direction = [torch.randn_like(t) if i == {leaf} else None for i, t in enumerate(leaves)]"
        return "direction = [torch.randn_like(t) for t in leaves]"

    def _unit(self) -> str:
        """How far an element is moved: by as much as its leaf is large."""
        if self._leaf is None or self._finding.index is None:
            return "1.0"
        x = self._leaves[self._leaf].detach()
        x = x if x.layout is torch.strided else x.to_dense()
        size = x.abs().double().square().mean().sqrt().item()
        return f"{size:.2g}" if 0 < size < float("inf") else "1.0"

    def _step(self) -> str:
        return f"{max(_STEPS.get(t.dtype, _SHORT) for t in self._leaves):g}"


def _moves(t: Any) -> bool:
    return isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex()) and t.numel() > 0


def _typed(point: Tree, x: Tree) -> Tree:
    """A point in the types of another one; Python floats as they are."""
    values, structure = tree.flatten(point)
    own = tree.flatten(x)[0]
    return structure.unflatten([v.to(t.dtype) if isinstance(t, Tensor) and isinstance(v, Tensor) else v
                                for v, t in zip(values, own, strict=True)])  # fmt: skip


def _function(f: Callable[[Any], Any]) -> str:
    """A line that imports the function, or says which one to fill in."""
    module, name = getattr(f, "__module__", None), getattr(f, "__qualname__", "")
    owner = getattr(f, "__self__", None)
    if isinstance(owner, type) and getattr(f, "__name__", "") == "apply":
        if _is_found(owner.__module__, owner.__qualname__, owner):
            return f"from {owner.__module__} import {owner.__qualname__}\n\nf = {owner.__qualname__}.apply"
        return f"f = ...  # fill in: {owner.__qualname__}.apply"
    if getattr(torch, getattr(f, "__name__", ""), None) is f:
        return f"f = torch.{f.__name__}"
    if module and inspect.isroutine(f) and _is_found(module, name, f):
        return f"from {module} import {name} as f"
    code = getattr(f, "__code__", None)
    where = f", {code.co_filename.rpartition('/')[2]} line {code.co_firstlineno}" if code is not None else ""
    return f"f = ...  # fill in: {name or type(f).__name__}{where}"


def _is_found(module: str, name: str, wanted: Any) -> bool:
    """Whether an import of the name gives the object."""
    return module != "__main__" and name.isidentifier() and getattr(sys.modules.get(module), name, None) is wanted
