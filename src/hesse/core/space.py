"""`Space`: what a vector is. It names every leaf, so that every error can."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hesse.core import random, tree
from hesse.core.errors import LeafError, StructureError
from hesse.core.tree import Structure, Tree
from hesse.core.wrapped import is_sharded


@dataclass(frozen=True, eq=False)
class Space:
    """The space of trees with given names, shapes, dtypes and devices.

    Leaves keep insertion order (`named_parameters` order for modules), and the columns of every flat
    matrix are in that order. Python floats are 0-d leaves of the default dtype.

    Attributes:
        names: path of each leaf, ``"a.b.0"``; the empty string for a bare tensor.
        shapes, dtypes, devices: one entry a leaf.
        structure: the nesting, with static leaves.
        takes_shards: whether leaves may be `torch.distributed.tensor.DTensor` s.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    devices: tuple[torch.device, ...]
    structure: Structure = field(repr=False)
    takes_shards: bool = False

    @classmethod
    def of(cls, example: Tree) -> Space:
        """The space that a tree belongs to."""
        named = tree.named_leaves(example)
        tensors = [leaf if isinstance(leaf, Tensor) else torch.as_tensor(leaf) for _, leaf in named]
        _, structure = tree.flatten(example)
        return cls(
            tuple(name for name, _ in named),
            tuple(t.shape for t in tensors),
            tuple(t.dtype for t in tensors),
            tuple(t.device for t in tensors),
            structure,
            any(map(is_sharded, tensors)),
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each leaf."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def dim(self) -> int:
        """Number of elements of the whole vector."""
        return sum(self.sizes)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of flat vectors: the type to which all leaves promote."""
        if not self.dtypes:
            return torch.get_default_dtype()
        result = self.dtypes[0]
        for dtype in self.dtypes[1:]:
            result = torch.promote_types(result, dtype)
        return result

    @property
    def device(self) -> torch.device:
        """The device of flat vectors: that of the first leaf."""
        return self.devices[0] if self.devices else torch.device("cpu")

    def ravel(self, vector: Tree, batch_ndim: int = 0) -> Tensor:
        """Flatten a tree into ``[*batch, dim]``."""
        parts = self.check(vector, "vector", batch_ndim)
        if not parts:
            return torch.zeros(0, dtype=self.dtype, device=self.device)
        batch = parts[0].shape[:batch_ndim]
        pairs = zip(parts, self.sizes, strict=True)
        return torch.cat([part.reshape(*batch, size).to(self.dtype, copy=False) for part, size in pairs], dim=-1)

    def unravel(self, flat: Tensor) -> Tree:
        """Undo `ravel`: ``[*batch, dim]`` into a tree whose leaves are ``[*batch, *shape]``."""
        if flat.shape[-1:] != (self.dim,):
            raise StructureError(
                "Space.unravel needs a tensor whose last axis has the dimension of the space.",
                f"shape {tuple(flat.shape)} for a space of dimension {self.dim}",
                "pass a tensor of shape [..., dim]",
            )
        batch = flat.shape[:-1]
        parts = flat.split(self.sizes, dim=-1) if self.sizes else ()
        return self.structure.unflatten(
            _cast(part, dtype).reshape(batch + shape)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        )

    def rebuild(self, parts: list[Tensor]) -> Tree:
        """The tree with these leaves (batch axes in front allowed), unchecked."""
        return self.structure.unflatten(parts)

    def check(self, vector: Tree, what: str, batch_ndim: int | None = 0) -> list[Tensor]:
        """The leaves of `vector` as tensors, after checking that it belongs to this space.

        Args:
            vector: a tree; each leaf may have `batch_ndim` axes in front (None: any number, the same for all).
            what: how the error names the vector.
            batch_ndim: number of batch axes.

        Raises:
            StructureError: other paths or shapes, with the first leaf that differs; a leaf that is sharded over ranks.
            LeafError: a leaf that is no tensor or cannot be cast to the leaf's dtype (complex to real).
        """
        named = tree.named_leaves(vector)
        if tuple(name for name, _ in named) != self.names:
            raise StructureError(f"{what} does not have the structure of its space.", *_difference(self.names, named))
        parts: list[Tensor] = []
        batch: torch.Size | None = None
        for (name, leaf), shape, dtype, device in zip(named, self.shapes, self.dtypes, self.devices, strict=True):
            number = None if isinstance(leaf, complex) and not dtype.is_complex else dtype
            part = leaf if isinstance(leaf, Tensor) else torch.as_tensor(leaf, dtype=number, device=device)
            if not self.takes_shards:
                require_full(part, what, f" at {_quote(name)}")
            if dtype.is_complex < part.dtype.is_complex:
                raise LeafError(
                    f"{what} must be real here.",
                    f"{part.dtype} at {_quote(name)}, where the space has {dtype}",
                    "split the vector into its real and imaginary parts",
                )
            lead = part.ndim - len(shape) if batch_ndim is None else batch_ndim
            front = part.shape[: max(lead, 0)]
            if part.shape[max(lead, 0) :] != shape or (batch is not None and front != batch):
                raise StructureError(
                    f"{what} does not have the shape of its space.",
                    f"{tuple(part.shape)} at {_quote(name)}, where {tuple(shape)} belongs"
                    + (f" after {lead} batch axes" if lead else ""),
                    "pass a tree with the shapes of the space" + (" and equal batch axes in front" if lead else ""),
                )
            batch = front
            parts.append(part)
        return parts

    def zeros(self, *batch: int) -> Tree:
        """The zero vector (with batch axes in front)."""
        return self._fill(lambda shape, dtype, device: torch.zeros((*batch, *shape), dtype=dtype, device=device))

    def normal(self, *batch: int, generator: torch.Generator | None = None) -> Tree:
        """A vector of independent standard normal numbers (without a generator: the same one each time)."""
        source = random.make_generator() if generator is None else generator
        return self._fill(lambda s, dt, dv: random.normal((*batch, *s), dt, dv, source))

    def rademacher(self, *batch: int, generator: torch.Generator | None = None) -> Tree:
        """A vector of independent random signs (without a generator: the same ones each time)."""
        source = random.make_generator() if generator is None else generator
        return self._fill(lambda s, dt, dv: random.rademacher((*batch, *s), dt, dv, source))

    def _fill(self, make: Any) -> Tree:
        return self.structure.unflatten(
            make(shape, dtype, device) for shape, dtype, device in zip(self.shapes, self.dtypes, self.devices, strict=True)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.names == other.names and self.shapes == other.shapes

    def __hash__(self) -> int:
        return hash((self.names, self.shapes))

    def __str__(self) -> str:
        rows = [f"{_quote(n)} {list(s)}" for n, s in zip(self.names, self.shapes, strict=True)]
        shown = rows if len(rows) <= 4 else [*rows[:2], f"... {len(rows) - 3} more ...", rows[-1]]
        return f"Space(dim={self.dim}, {str(self.dtype).removeprefix('torch.')}: {', '.join(shown)})"

    __repr__ = __str__


def require_full(leaf: Tensor, what: str, place: str = "") -> None:
    """Refuse a `torch.distributed.tensor.DTensor` where tensors of this process are needed.

    Args:
        leaf: the tensor.
        what: how the error names the vector.
        place: where in it the tensor is, `` at '0.weight'``.

    Raises:
        StructureError: it is one.
    """
    if is_sharded(leaf):
        placed: Any = leaf
        raise StructureError(
            f"{what} is made of full tensors.",
            f"a DTensor{place}: {placed.placements}",
            "pass hesse.distributed.gather(vector) (of one leaf: .full_tensor()); products with sharded vectors: "
            "hesse.distributed.sharded(operator, model)",
        )


def _cast(part: Tensor, dtype: torch.dtype) -> Tensor:
    if part.dtype.is_complex and not dtype.is_complex:
        raise LeafError(
            "A complex vector cannot be an element of a real space.",
            f"{part.dtype} for {dtype}",
            "split the vector into its real and imaginary parts; spaces that mix real and complex leaves have no flat form",
        )
    return part.to(dtype)


def _quote(name: str) -> str:
    return f"'{name}'" if name else "the only leaf"


def _difference(names: tuple[str, ...], named: list[tuple[str, Any]]) -> tuple[str, str]:
    present = [name for name, _ in named]
    missing = [name for name in names if name not in present]
    extra = [name for name in present if name not in names]
    if not missing and not extra:
        return f"the leaves in the order {present}", f"pass them in the order {list(names)}"
    found = []
    if missing:
        found.append(f"no leaf at {', '.join(_quote(n) for n in missing[:3])}{' ...' if len(missing) > 3 else ''}")
    if extra:
        found.append(f"an unknown leaf at {', '.join(_quote(n) for n in extra[:3])}{' ...' if len(extra) > 3 else ''}")
    return "; ".join(found), "pass a tree with the paths of the space (print the space to see them)"
