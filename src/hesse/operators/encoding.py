"""Values that make up an operator, as JSON and named tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.core import tree
from hesse.core.errors import UnsupportedError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag

Json = Any
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


class Vector(NamedTuple):
    """An element of a space, by its leaves."""

    space: Space
    leaves: list[Any]


class Encoder:
    """Turns values into JSON; collects the tensors and the spaces it meets, each once.

    Args:
        describe: turns an operator into the name of its type and its arguments.
    """

    def __init__(self, describe: Callable[[LinearOperator], tuple[str, dict[str, Any]]]) -> None:
        self._describe = describe
        self.tensors: dict[str, Tensor] = {}
        self.spaces: list[Json] = []
        self._names: dict[int, str] = {}
        self._spaces: dict[int, tuple[int, Space]] = {}

    def encode(self, value: Any, path: str) -> Json:
        """The JSON of a value; `path` names the tensors in it.

        Raises:
            UnsupportedError: a value of another type. Others as `describe`.
        """
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, Tensor):
            return {"tensor": self._tensor(value, path)}
        if isinstance(value, Space):
            return {"space": self._space(value)}
        if isinstance(value, Vector):
            leaves = [torch.as_tensor(leaf) for leaf in value.leaves]
            return {"vector": [self._space(value.space), self._list(leaves, path)]}
        if isinstance(value, LinearOperator):
            name, arguments = self._describe(value)
            return {"operator": [name, {key: self.encode(part, f"{path}.{key}") for key, part in arguments.items()}]}
        if isinstance(value, frozenset) and all(isinstance(tag, Tag) for tag in value):
            return {"tags": sorted(tag.name for tag in value)}
        if isinstance(value, (list, tuple)):
            return {"tuple" if isinstance(value, tuple) else "list": self._list(value, path)}
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": [[key, self.encode(part, f"{path}.{key}")] for key, part in value.items()]}
        raise UnsupportedError(
            "An operator is stored by tensors, operators, spaces, tags, numbers, texts, and lists, tuples and dicts of such.",
            f"a {type(value).__name__} at '{path}'",
            "let its storing rule return these",
        )

    def _list(self, values: Any, path: str) -> list[Json]:
        return [self.encode(part, f"{path}.{place}") for place, part in enumerate(values)]

    def _tensor(self, value: Tensor, path: str) -> str:
        name = self._names.setdefault(id(value), path)
        self.tensors.setdefault(name, value)
        return name

    def _space(self, space: Space) -> int:
        if id(space) not in self._spaces:
            self._spaces[id(space)] = (len(self.spaces), space)  # held, so that no other space gets its id
            dtypes = [str(dtype).removeprefix("torch.") for dtype in space.dtypes]
            names, shapes = list(space.names), [list(shape) for shape in space.shapes]
            self.spaces.append({"names": names, "shapes": shapes, "dtypes": dtypes, "nesting": _nesting(space)})
        return self._spaces[id(space)][0]


@dataclass(frozen=True)
class Decoder:
    """Undoes `Encoder`.

    Attributes:
        rebuild: makes an operator from the name of its type and its arguments.
        tensors: by name.
        spaces: the descriptions of the spaces.
        device: where the spaces' leaves are.
        like: a space whose structure and devices are taken for equal ones.
    """

    rebuild: Callable[[str, dict[str, Any]], LinearOperator]
    tensors: dict[str, Tensor]
    spaces: list[Json]
    device: torch.device
    like: Space | None

    def decode(self, value: Json) -> Any:
        """The value behind its JSON."""
        if not isinstance(value, dict):
            return value
        ((form, content),) = value.items()
        if form == "complex":
            return complex(*content)
        if form == "tensor":
            return self.tensors[content]
        if form == "space":
            return self._space(content)
        if form == "vector":
            return self._space(content[0]).rebuild([self.decode(leaf) for leaf in content[1]])
        if form == "operator":
            return self._operator(*content)
        if form == "tags":
            return frozenset(Tag[name] for name in content)
        if form == "dict":
            return {key: self.decode(part) for key, part in content}
        return {"tuple": tuple, "list": list}[form](self.decode(part) for part in content)

    def _operator(self, name: str, arguments: dict[str, Json]) -> LinearOperator:
        return self.rebuild(name, {key: self.decode(part) for key, part in arguments.items()})

    def _space(self, number: int) -> Space:
        described = self.spaces[number]
        names = tuple(described["names"])
        shapes = tuple(torch.Size(shape) for shape in described["shapes"])
        dtypes = tuple(_DTYPES[dtype] for dtype in described["dtypes"])
        example = dict.fromkeys(names, 0.0) if described["nesting"] is None else _nest(described["nesting"])
        found = Space(names, shapes, dtypes, (self.device,) * len(names), tree.flatten(example)[1])
        if self.like is None or self.like != found:
            return found
        return Space(names, shapes, dtypes, found.devices, self.like.structure)


def _nesting(space: Space) -> Json | None:
    """The nesting of dicts, lists and tuples, ``"leaf"`` for every leaf; None if there are other nodes in it."""

    def walk(node: Tree) -> Json:
        if type(node) is dict and all(isinstance(key, str) for key in node):
            return {"dict": [[key, walk(child)] for key, child in node.items()]}
        if type(node) in (list, tuple):
            return {type(node).__name__: [walk(child) for child in node]}
        if isinstance(node, Tensor):
            return "leaf"
        if node is None or isinstance(node, (bool, int, str)):
            return {"static": node}
        raise UnsupportedError("A nesting of dicts, lists and tuples is stored.", type(node).__name__, "use such trees")

    try:
        return walk(space.rebuild([torch.empty(0)] * len(space.names)))
    except UnsupportedError:
        return None


def _nest(nesting: Json) -> Tree:
    if nesting == "leaf":
        return 0.0
    ((form, content),) = nesting.items()
    if form == "dict":
        return {key: _nest(child) for key, child in content}
    if form == "static":
        return content
    return {"list": list, "tuple": tuple}[form](_nest(child) for child in content)
