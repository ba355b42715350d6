"""What processes tell each other of an operator, so that one without data can take part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hesse.core.errors import DistributedError
from hesse.core.fingerprint import sample_hashes
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators import Average, Tag


@dataclass(frozen=True)
class Facts:
    """What the operators of all processes have in common.

    Attributes:
        trees: vectors of zeros of both spaces, whose tensors hold one number each.
        devices: types of the devices of their leaves.
        tags: of the operator.
        additive: whether batches add up, instead of averaging by mass.
        reads: hashes of the tensors that the first operator was made from, where they have to be compared.
    """

    trees: tuple[Tree, Tree]
    devices: tuple[tuple[str, ...], tuple[str, ...]]
    tags: frozenset[Tag]
    additive: bool
    reads: tuple[int, ...] = ()

    @classmethod
    def of(cls, operator: Average, reads: Iterable[Tensor] = ()) -> Facts:
        """Those of an average."""
        spaces = (operator.in_space, operator.out_space)
        devices = tuple(tuple(device.type for device in space.devices) for space in spaces)
        examples, hashes = (_example(spaces[0]), _example(spaces[1])), tuple(content_hash(leaf) for leaf in reads)
        return cls(examples, (devices[0], devices[1]), operator.tags, operator.additive, hashes)

    @property
    def in_space(self) -> Space:
        """The space that the operator takes vectors of, on this process's devices."""
        return self._space(0)

    @property
    def out_space(self) -> Space:
        """The space that it gives vectors of."""
        return self._space(1)

    def _space(self, index: int) -> Space:
        return replace(Space.of(self.trees[index]), devices=tuple(device_here({kind}) for kind in self.devices[index]))

    def __str__(self) -> str:
        spaces = (self.in_space, self.out_space)
        described = " to ".join(f"({', '.join(map(_leaf, s.names, s.shapes, s.dtypes))})" for s in spaces)
        tags = "".join(f", {name}" for name in sorted(tag.value for tag in self.tags))
        return f"{described}{tags}{', adding up' if self.additive else ''}"


def require_equal_reads(told: Sequence[Facts | None]) -> None:
    """Refuse operators that were made from other tensors than those of the first process that names any.

    Raises:
        DistributedError: names the process.
    """
    known = [(rank, one.reads) for rank, one in enumerate(told) if one is not None and one.reads]
    for rank, reads in known:
        if reads != known[0][1]:
            raise DistributedError(
                "The operators of an average read the same parameters on all processes.",
                f"other numbers on rank {rank} than on rank {known[0][0]} in what the first operator reads",
                "make operators in the same order on all processes; load the same state everywhere, or broadcast from rank 0",
            )


def content_hash(tensor: Tensor) -> int:
    """A hash of a tensor's dtype, shape and content."""
    return int(sample_hashes(tensor.detach().unsqueeze(0))[0])


def device_here(kinds: set[str]) -> torch.device:
    """This process's device of these types: its current accelerator, unless all are the CPU."""
    kind = next(iter(kinds - {"cpu"}), "cpu")
    return torch.device(kind) if kind == "cpu" else torch.device(kind, torch.cuda.current_device())


def _example(space: Space) -> Tree:
    return space.rebuild([torch.zeros((), dtype=t).expand(s) for s, t in zip(space.shapes, space.dtypes, strict=True)])


def _leaf(name: str, shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{name} {list(shape)} {str(dtype).removeprefix('torch.')}"
