"""How a call is recognized: generated code that compares arguments with those of a recorded call and gathers their tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack

from hesse.autodiff.compiled.state_codes import is_library
from hesse.autodiff.compiled.state_values import is_constant, same
from hesse.autodiff.compiled.unrecordable import Unrecordable
from hesse.core.tree import is_open_dataclass

_PLAIN = (bool, int, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_TENSORS = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


_SWITCHES: tuple[Callable[[], Any], ...] = (
    torch.is_anomaly_enabled,
    torch.is_anomaly_check_nan_enabled,
    torch.are_deterministic_algorithms_enabled,
    torch.is_deterministic_algorithms_warn_only_enabled,
    torch.is_warn_always_enabled,
    torch.get_num_threads,
    torch._C._get_mkldnn_enabled,
    torch._C._get_nnpack_enabled,
    torch._C._get_cudnn_enabled,
    torch._C._get_cudnn_benchmark,
    torch._C._get_cudnn_deterministic,
    torch._C._get_flash_sdp_enabled,
    torch._C._get_mem_efficient_sdp_enabled,
    torch._C._get_math_sdp_enabled,
    torch._C._get_cudnn_sdp_enabled,
)
_PRECISIONS = (("generic", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("mkldnn", "matmul"), ("mkldnn", "conv"))

_HELPERS = {"Tensor": Tensor, "as_tensor": torch.tensor, "float64": torch.float64, "same": same}


def mode_key() -> tuple[Any, ...]:
    """The global settings that a recorded run depends on, or that the user's function can ask for.

    Cost: 3 microseconds.
    """
    return (
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        *[switch() for switch in _SWITCHES],
        *[torch._C._get_fp32_precision_getter(backend, op) for backend, op in _PRECISIONS],
        torch._C._len_torch_function_stack() and _default_devices(),
    )


def _default_devices() -> tuple[Any, ...]:
    """What `torch.set_default_device` and ``with torch.device(...)`` chose."""
    return tuple(getattr(mode, "device", None) for mode in _get_current_function_mode_stack())


class Entry:
    """Recognizes calls with the structure, the Python values, and the shapes and dtypes of one example.

    Args:
        args, kwargs: the example.
        variables: positions of arguments that are differentiated: their floats are inputs; all other Python values are
            compared.

    Attributes:
        gather: ``(args, kwargs)`` to the list of tensors, or None for a call of another kind.
        inputs: the tensors of the example. Those of variables are views made here, one for each place, so that a tensor that
            the function closes over as well is another object; the others are the tensors themselves, each once.
        identified: positions of those others.
        names: their paths, "argument 0['w']".
        args, kwargs: the example, the variables put together anew from those tensors.
        objects: leaves that are neither tensors nor plain values, by path; they are compared by identity.
        classes: the user's data classes, named tuples and the like that stand in it, whose attributes can be read too.
        code: the source of `gather`.

    Raises:
        Unrecordable: a tensor of a kind that is not recorded, or arguments that contain themselves.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], variables: Sequence[int]) -> None:
        self.inputs: list[Tensor] = []
        self.names: list[str] = []
        self.objects: dict[str, Any] = {}
        self.classes: dict[str, type] = {}
        self.identified: list[int] = []
        self._places: dict[int, str] = {}
        self._lines: list[str] = []
        self._constants: dict[str, Any] = dict(_HELPERS)
        self._count = 0
        self._gathered: list[str] = []
        self._check(f"len(args) == {len(args)} and tuple(kwargs) == {tuple(kwargs)!r}")
        try:
            self.args = tuple(self._visit(arg, f"args[{i}]", f"argument {i}", i in variables) for i, arg in enumerate(args))
            self.kwargs = {key: self._visit(v, f"kwargs[{key!r}]", f"argument {key}", False) for key, v in kwargs.items()}
        except RecursionError:
            raise Unrecordable("its arguments are nested too deeply to be compared") from None
        body = [*self._lines, f"return [{', '.join(self._gathered)}]"]
        self.code = "def gather(args, kwargs):\n" + "".join(f"    {line}\n" for line in body)
        namespace = dict(self._constants)
        exec(compile(self.code, "<hesse entry>", "exec"), namespace)
        self.gather: Callable[[tuple[Any, ...], dict[str, Any]], list[Tensor] | None] = namespace["gather"]

    def is_unchanged(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the arguments of the example still hold what they held."""
        found = self.gather(args, kwargs)
        return found is not None and all(found[i] is self.inputs[i] for i in self.identified)

    def forget(self) -> None:
        """Let go of the example."""
        self.inputs, self.args, self.kwargs, self.objects = [], (), {}, {}
        self._places.clear()

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
        """Write the check of one node; returns it, made anew from fresh tensors if it belongs to a variable."""
        if isinstance(value, Tensor):
            return self._tensor(value, text, path, is_variable)
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
        if kind is not tuple and is_constant(value):
            self._check(f"same({text}, {self._keep(value)})")
            return value
        return self._container(value, kind, text, path, is_variable)

    def _local(self, text: str) -> str:
        name = self._name("x")
        self._lines.append(f"{name} = {text}")
        return name

    def _container(self, value: Any, kind: type, text: str, path: str, is_variable: bool) -> Any:
        name = self._local(text)
        alike = f"type({name}) is {self._keep(kind)}"
        if kind is dict:
            self._check(f"{alike} and tuple({name}) == {self._keep(tuple(value))}")
            if not all(type(key) is str for key in value):  # 1 is found as True and as 1.0
                self._check(f"list(map(type, {name})) == {self._keep(list(map(type, value)))}")
            keys = {key: self._keep(key) for key in value}
            made = {key: self._visit(v, f"{name}[{keys[key]}]", f"{path}[{key!r}]", is_variable) for key, v in value.items()}
            return made if is_variable else value
        if kind in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields")):
            self._check(f"{alike} and len({name}) == {len(value)}")
            self._class(kind)
            parts = [self._visit(v, f"{name}[{i}]", f"{path}[{i}]", is_variable) for i, v in enumerate(value)]
            if not is_variable:
                return value
            return kind(parts) if kind in (list, tuple) else kind(*parts)
        if is_open_dataclass(value):
            self._check(alike)
            self._class(kind)
            return self._dataclass(value, kind, name, path, is_variable)
        if kind in pytree.SUPPORTED_NODES:
            self._check(alike)
            self._class(kind)
            return self._registered(value, name, path, is_variable)
        self._check(f"{name} is {self._keep(value)}")
        self.objects[path] = value
        return value

    def _class(self, kind: type) -> None:
        if not is_library(kind.__module__):
            self.classes[f"class {kind.__qualname__}"] = kind

    def _dataclass(self, value: Any, kind: type, name: str, path: str, is_variable: bool) -> Any:
        instance = object.__new__(kind)
        fields = [field.name for field in dataclasses.fields(value)]
        if not is_variable and (others := getattr(value, "__dict__", None)):
            self._check(f"tuple({name}.__dict__) == {self._keep(tuple(others))}")
            fields += [key for key in others if key not in fields]  # what __post_init__ sets
        for field in fields:
            if not hasattr(value, field):
                self._check(f"not hasattr({name}, {field!r})")
                continue
            self._check(f"hasattr({name}, {field!r})")
            part = self._visit(getattr(value, field), f"{name}.{field}", f"{path}.{field}", is_variable)
            object.__setattr__(instance, field, part)
        return instance if is_variable else value

    def _registered(self, value: Any, name: str, path: str, is_variable: bool) -> Any:
        node = pytree.SUPPORTED_NODES[type(value)]
        children, context = node.flatten_fn(value)
        children = list(children)
        flat, kept = self._keep(node.flatten_fn), self._keep(context)
        parts = self._name("x")
        self._lines.append(f"{parts}, c = {flat}({name})")
        self._lines.append(f"{parts} = list({parts})")
        self._check(f"c == {kept} and len({parts}) == {len(children)}")
        fresh = [self._visit(v, f"{parts}[{i}]", f"{path}.{i}", is_variable) for i, v in enumerate(children)]
        return node.unflatten_fn(fresh, context) if is_variable else value

    def _tensor(self, value: Tensor, text: str, path: str, is_variable: bool) -> Tensor:
        if type(value) not in _TENSORS:
            raise Unrecordable(f"{path} is a {type(value).__name__}, a subclass of Tensor")
        if value.layout != torch.strided:
            raise Unrecordable(f"{path} is sparse")
        name = self._local(text)
        if not is_variable and id(value) in self._places:
            self._check(f"{name} is {self._places[id(value)]}")
            return value
        self._check(f"isinstance({name}, Tensor)")
        self._check(tensor_check(value, name, self._keep))
        self._gathered.append(name)
        self.names.append(path)
        self.inputs.append(_apart(value) if is_variable else value)
        if is_variable:
            return self.inputs[-1]
        self.identified.append(len(self.inputs) - 1)
        self._places[id(value)] = name
        self._attributes(value, name, path)
        return value

    def _attributes(self, value: Tensor, name: str, path: str) -> None:
        """What users have set on a tensor."""
        if not value.__dict__:
            self._check(f"not {name}.__dict__")
            return
        self._check(f"tuple({name}.__dict__) == {self._keep(tuple(value.__dict__))}")
        for key, part in value.__dict__.items():
            self._visit(part, f"{name}.__dict__[{key!r}]", f"{path}.{key}", False)


def _apart(value: Tensor) -> Tensor:
    """The same memory as another object, which hangs on the same."""
    if value.requires_grad and not torch.is_grad_enabled():
        return value.detach().requires_grad_()
    return value.view_as(value)


def tensor_check(value: Tensor, name: str, keep: Callable[[Any], str]) -> str:
    """Code that compares what a recorded run takes for granted of a tensor."""
    parts = [
        f"{name}.shape == {keep(value.shape)}",
        f"{name}.dtype is {keep(value.dtype)}",
        _layout_check(value, name, keep),
        f"{name}.device == {keep(value.device)}",
        f"{name}.requires_grad is {value.requires_grad}",
        f"{name}.is_neg() is {value.is_neg()}",
        f"{name}.is_conj() is {value.is_conj()}" if value.is_complex() else "",
        f"type({name}) is {keep(type(value))}",
    ]
    return " and ".join(part for part in parts if part)


def _layout_check(value: Tensor, name: str, keep: Callable[[Any], str]) -> str:
    if value.layout is torch.strided:
        return f"{name}.layout is {keep(torch.strided)} and {name}.stride() == {tuple(value.stride())}"
    check = f"{name}.layout is {keep(value.layout)} and {name}._nnz() == {value._nnz()}"
    if value.layout is torch.sparse_coo:
        return f"{check} and {name}.is_coalesced() is {value.is_coalesced()}"
    return f"{check} and {name}.values().shape == {keep(value.values().shape)}"
