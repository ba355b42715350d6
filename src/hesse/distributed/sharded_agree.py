"""Ranks that hold parts of the same tensors: their full values, and one verdict for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from hesse.core.errors import HesseError
from hesse.distributed.differences import hash_text
from hesse.distributed.link import Link
from hesse.distributed.traffic import count
from hesse.distributed.wire import Wire

TIMEOUT = 300.0


def full(leaf: Any, what: str, timeout: float = TIMEOUT) -> Any:
    """A leaf of a tree; a `DTensor` gathered from all ranks, detached and contiguous.

    Args:
        leaf: anything; the ranks have compared that they mean the same one.
        what: under which name its bytes are counted.
        timeout: seconds to wait for the others. Of partial sums, and of an axis that is cut along two axes of a mesh, PyTorch
            makes the full value, within the process group's own timeout.

    Raises:
        DistributedError: a rank is silent or gone.
    """
    if not isinstance(leaf, DTensor):
        return leaf
    leaf = leaf.detach()
    mesh = leaf.device_mesh
    cut = [(axis, placed) for axis, placed in enumerate(leaf.placements) if not placed.is_replicate() and mesh.size(axis) > 1]
    wires = {axis: Wire(mesh.get_group(axis), timeout) for axis, _ in cut}
    if all(type(placed) is Shard for _, placed in cut) and len({placed.dim for _, placed in cut}) == len(cut):
        value = leaf.to_local()
        for axis, placed in cut:
            value = _uncut(value, placed.dim, leaf.shape[placed.dim], wires[axis], what)
        value = value.contiguous()
    else:
        with ExitStack() as stack:
            for wire in wires.values():
                stack.enter_context(wire.breaking(what))
            value = leaf.full_tensor()
    parts = math.prod(n for n, placed in zip(leaf.device_mesh.shape, leaf.placements, strict=True) if placed.is_shard())
    count(what, leaf.numel() * leaf.element_size() * (parts - 1) / parts)
    return value.detach()


def _uncut(part: Tensor, dim: int, length: int, wire: Wire, what: str) -> Tensor:
    """A tensor whose axis `dim` is cut over ranks as `torch.chunk` cuts it: whole, of this length there."""
    rows = part.movedim(dim, 0)
    most = -(-length // wire.standing.ranks)
    mine = torch.zeros((most, *rows.shape[1:]), dtype=part.dtype, device=part.device)
    mine[: len(rows)].copy_(rows)
    return wire.gather_rows(mine, what)[:length].movedim(0, dim)


def layout_hashes(named: Iterable[tuple[str, Any]]) -> dict[str, int]:
    """Of every leaf its place in the order, and how it lies on ranks; of a leaf of this process alone nothing more."""
    return {name: hash_text(f"{number} {_described(leaf)}") for number, (name, leaf) in enumerate(named)}


def _described(leaf: Any) -> str:
    if not isinstance(leaf, DTensor):
        return ""
    return f"{tuple(leaf.shape)} {leaf.dtype} {leaf.placements} {leaf.device_mesh.shape}"


@contextmanager
def asking(sharded: Mapping[str, Any], what: str, timeout: float = TIMEOUT) -> Iterator[None]:
    """A question over the ranks of these tensors: what one of them raises in it is raised on the others, too.

    Args:
        sharded: name -> DTensor; the ranks of their meshes ask this together.
        what: how errors name the question.
        timeout: seconds to wait for the others.
    """
    with ExitStack() as stack:
        for link in reversed(list(_links(sharded, timeout))):  # told in the order in which the others listen
            stack.enter_context(link.asking(what))
        yield


def agree(sharded: Mapping[str, Any], verdict: Callable[[], HesseError | None], what: str, timeout: float = TIMEOUT) -> None:
    """Raise on every rank what some rank found wrong.

    Args:
        sharded: name -> DTensor; the ranks of their meshes call this together.
        verdict: what is wrong on this rank, or None.
        what: the call, so that different calls of the ranks do not pass for one.
        timeout: seconds to wait for the others.

    Raises:
        HesseError: the verdict of the first rank that has one. DistributedError: a rank failed, is gone or asks something else.
    """
    found: list[HesseError | None] = []

    def own() -> HesseError | None:
        return next((error for error in found if error is not None), None) if found else verdict()

    def over(link: Link) -> None:
        found[:] = link.exchange(what, own)

    if not _on_all(_links(sharded, timeout), over):
        found = [verdict()]
    wrong = next((error for error in found if error is not None), None)
    if wrong is not None:
        raise wrong


def require_equal(
    sharded: Mapping[str, Any], hashes: Callable[[], Mapping[str, int]], what: str, timeout: float = TIMEOUT
) -> None:
    """Refuse, on every rank, what is not the same on all ranks.

    Args:
        sharded: name -> DTensor; the ranks of their meshes call this together.
        hashes: makes those of this rank's values, by name; what it raises is raised on all ranks.
        what: what they are.
        timeout: seconds to wait for the others.

    Raises:
        DistributedError: the first name whose value differs, and the ranks; as for `agree`.
    """
    known: dict[str, int] = {}

    def own() -> dict[str, int]:
        if not known:
            known.update({name: hash_text(str(number)) for name, number in hashes().items()})
        return known

    if not _on_all(_links(sharded, timeout), lambda link: link.check_same(what, own)):
        own()


def _on_all(links: Iterable[Link], ask: Callable[[Link], None]) -> int:
    """Ask over one link after the other, and how many there were; after a failure the rest are told of it, and it is raised."""
    failure: Exception | None = None
    count = 0
    for link in links:
        count += 1
        try:
            with link.asking("parameters on several ranks"):
                if failure is not None:
                    raise failure
                ask(link)
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return count


def _links(sharded: Mapping[str, Any], timeout: float) -> Iterator[Link]:
    """A link for every group of ranks along an axis of a mesh, each once: `fully_shard` makes a mesh for every call."""
    groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
    for leaf in sharded.values():
        for group in leaf.device_mesh.get_all_groups():
            groups.setdefault(tuple(dist.get_process_group_ranks(group)), group)
    for members, group in groups.items():
        if len(members) > 1:
            yield Link(group, timeout, counted=False)
