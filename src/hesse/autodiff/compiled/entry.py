"""How a call is recognized: generated code that compares arguments with those of a recorded call and gathers their tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from hesse.autodiff.compiled.unrecordable import Unrecordable
from hesse.core.tree import is_open_dataclass

_PLAIN = (bool, int, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_TENSORS = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def mode_key() -> tuple[Any, ...]:
    """The global settings that a recorded run depends on."""
    return (
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.are_deterministic_algorithms_enabled(),
    )


class Entry:
    """Recognizes calls with the structure, the Python values, and the shapes and dtypes of one example.

    Args:
        args, kwargs: the example.
        variables: positions of arguments that are differentiated: their floats are inputs; all other Python values are
            compared.

    Attributes:
        gather: ``(args, kwargs)`` to the list of tensors, or None for a call of another kind.
        inputs: the tensors of the example, one object each (an argument that occurs twice gives two).
        names: their paths, "argument 0['w']".
        args, kwargs: the example with those tensors in their places.
        objects: leaves that are neither tensors nor plain values, by path; they are compared by identity.
        code: the source of `gather`.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], variables: Sequence[int]) -> None:
        self.inputs: list[Tensor] = []
        self.names: list[str] = []
        self.objects: dict[str, Any] = {}
        self._lines: list[str] = []
        self._constants: dict[str, Any] = {"Tensor": Tensor, "as_tensor": torch.tensor, "float64": torch.float64}
        self._count = 0
        self._gathered: list[str] = []
        self._check(f"len(args) == {len(args)} and tuple(kwargs) == {tuple(kwargs)!r}")
        self.args = tuple(self._visit(arg, f"args[{i}]", f"argument {i}", i in variables) for i, arg in enumerate(args))
        self.kwargs = {key: self._visit(v, f"kwargs[{key!r}]", f"argument {key}", False) for key, v in kwargs.items()}
        body = [*self._lines, f"return [{', '.join(self._gathered)}]"]
        self.code = "def gather(args, kwargs):\n" + "".join(f"    {line}\n" for line in body)
        namespace = dict(self._constants)
        exec(compile(self.code, "<hesse entry>", "exec"), namespace)
        self.gather: Callable[[tuple[Any, ...], dict[str, Any]], list[Tensor] | None] = namespace["gather"]

    def _check(self, condition: str) -> None:
        self._lines.append(f"if not ({condition}): return None")

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def _keep(self, value: Any) -> str:
        name = self._name("k")
        self._constants[name] = value
        return name

    def _visit(self, value: Any, text: str, path: str, is_variable: bool) -> Any:
        """Write the check of one node; returns the node with fresh tensors."""
        if isinstance(value, Tensor):
            return self._tensor(value, text, path)
        kind = type(value)
        if kind is float and is_variable:
            name = self._local(text)
            self._check(f"type({name}) is float")
            self._gathered.append(f"as_tensor({name}, dtype=float64)")
            self.inputs.append(torch.tensor(value, dtype=torch.float64))
            self.names.append(path)
            return self.inputs[-1]
        if kind in (float, complex):
            name = self._local(text)
            self._check(f"type({name}) is {kind.__name__} and repr({name}) == {repr(value)!r}")
            return value
        if kind in _PLAIN:
            name = self._local(text)
            self._check(f"type({name}) is {self._keep(kind)} and {name} == {self._keep(value)}")
            return value
        return self._container(value, kind, text, path, is_variable)

    def _local(self, text: str) -> str:
        name = self._name("x")
        self._lines.append(f"{name} = {text}")
        return name

    def _container(self, value: Any, kind: type, text: str, path: str, is_variable: bool) -> Any:
        name = self._local(text)
        same = f"type({name}) is {self._keep(kind)}"
        if kind is dict:
            self._check(f"{same} and tuple({name}) == {self._keep(tuple(value))}")
            keys = {key: self._keep(key) for key in value}
            return {key: self._visit(v, f"{name}[{keys[key]}]", f"{path}[{key!r}]", is_variable) for key, v in value.items()}
        if kind in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields")):
            self._check(f"{same} and len({name}) == {len(value)}")
            parts = [self._visit(v, f"{name}[{i}]", f"{path}[{i}]", is_variable) for i, v in enumerate(value)]
            return kind(parts) if kind in (list, tuple) else kind(*parts)
        if is_open_dataclass(value):
            return self._dataclass(value, kind, name, path, is_variable, same)
        if kind in pytree.SUPPORTED_NODES:
            return self._registered(value, name, path, is_variable, same)
        self._check(f"{name} is {self._keep(value)}")
        self.objects[path] = value
        return value

    def _dataclass(self, value: Any, kind: type, name: str, path: str, is_variable: bool, same: str) -> Any:
        self._check(same)
        instance = object.__new__(kind)
        for field in dataclasses.fields(value):
            if not hasattr(value, field.name):
                self._check(f"not hasattr({name}, {field.name!r})")
                continue
            self._check(f"hasattr({name}, {field.name!r})")
            part = self._visit(getattr(value, field.name), f"{name}.{field.name}", f"{path}.{field.name}", is_variable)
            object.__setattr__(instance, field.name, part)
        return instance

    def _registered(self, value: Any, name: str, path: str, is_variable: bool, same: str) -> Any:
        node = pytree.SUPPORTED_NODES[type(value)]
        children, context = node.flatten_fn(value)
        flat, kept = self._keep(node.flatten_fn), self._keep(context)
        self._check(same)
        parts = self._name("x")
        self._lines.append(f"{parts}, c = {flat}({name})")
        self._check(f"c == {kept} and len({parts}) == {len(list(children))}")
        fresh = [self._visit(v, f"{parts}[{i}]", f"{path}.{i}", is_variable) for i, v in enumerate(children)]
        return node.unflatten_fn(fresh, context)

    def _tensor(self, value: Tensor, text: str, path: str) -> Tensor:
        if type(value) not in _TENSORS:
            raise Unrecordable(f"{path} is a {type(value).__name__}, a subclass of Tensor")
        if value.layout != torch.strided:
            raise Unrecordable(f"{path} is sparse")
        name = self._local(text)
        self._check(f"isinstance({name}, Tensor)")
        self._check(tensor_check(value, name, self._keep))
        self._gathered.append(name)
        self.names.append(path)
        self.inputs.append(value.view_as(value) if any(value is t for t in self.inputs) else value)
        return self.inputs[-1]


def tensor_check(value: Tensor, name: str, keep: Callable[[Any], str]) -> str:
    """Code that compares what a recorded run takes for granted of a tensor."""
    parts = [
        f"{name}.shape == {keep(value.shape)}",
        f"{name}.dtype is {keep(value.dtype)}",
        f"{name}.stride() == {tuple(value.stride())}",
        f"{name}.device == {keep(value.device)}",
        f"{name}.requires_grad is {value.requires_grad}",
        f"{name}.is_neg() is {value.is_neg()}",
        f"{name}.is_conj() is {value.is_conj()}" if value.is_complex() else "",
        f"type({name}) is {keep(type(value))}",
    ]
    return " and ".join(part for part in parts if part)
