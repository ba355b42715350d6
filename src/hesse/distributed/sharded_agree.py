"""Ranks that hold parts of the same tensors: their full values, and one verdict for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch.distributed as dist
from torch.distributed.tensor import DTensor

from hesse.core.errors import HesseError
from hesse.distributed.differences import hash_text
from hesse.distributed.link import Link
from hesse.distributed.traffic import count

TIMEOUT = 300.0


def full(leaf: Any, what: str) -> Any:
    """A leaf of a tree; a `DTensor` gathered from all ranks, detached.

    Args:
        leaf: anything.
        what: under which name its bytes are counted.
    """
    if not isinstance(leaf, DTensor):
        return leaf
    parts = math.prod(n for n, placed in zip(leaf.device_mesh.shape, leaf.placements, strict=True) if placed.is_shard())
    count(what, leaf.numel() * leaf.element_size() * (parts - 1) / parts)
    return leaf.full_tensor().detach()


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
            yield Link(group, timeout)
