"""Which modules of a graph are alike? Same class, same operations on the same shapes, connected in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hesse.autodiff.graphs.nodes import GraphNode, parents


@dataclass(frozen=True)
class Twins:
    """Groups of modules that are alike.

    Attributes:
        groups: the paths of each group of at least two, in the order in which they were first called.
        outermost: those groups whose modules are not part of other alike modules.
    """

    groups: tuple[tuple[str, ...], ...]
    outermost: tuple[tuple[str, ...], ...]


def find_twins(nodes: Sequence[GraphNode], modules: Mapping[str, str]) -> Twins:
    """The modules that are alike.

    Two modules are taken as alike where class and options are equal and the forward nodes in them, in the order of time, have
    equal kinds, operations, shapes and types, and read the same ones of their own module (or something from outside).

    Args:
        nodes: of the graph, in the order in which they ran.
        modules: what each module is, by its path.

    Returns:
        The groups.
    """
    around = parents(modules)
    inside: dict[str, list[GraphNode]] = {path: [] for path in modules if path}
    for node in nodes:
        path: str | None = node.module if node.phase == "forward" else ""
        while path:
            if path in inside:
                inside[path].append(node)
            path = around.get(path)
    alike: dict[Any, list[str]] = {}
    for path, members in inside.items():
        if members:
            alike.setdefault(_print(path, members, modules), []).append(path)
    groups = [tuple(paths) for paths in alike.values() if len(paths) > 1]
    member = {path for group in groups for path in group}
    outermost = [group for group in groups if not any(_has_twin_around(path, around, member) for path in group)]
    return Twins(tuple(groups), tuple(outermost))


def _print(path: str, members: list[GraphNode], modules: Mapping[str, str]) -> Any:
    """What is equal for modules that are alike."""
    number = {node.name: index for index, node in enumerate(members)}
    described = tuple(
        (
            node.kind,
            node.op if node.kind == "op" else "",
            tuple((facts.shape, facts.dtype) for facts in node.outputs),
            node.module[len(path) :],
            tuple(number.get(name, -1) for name in node.inputs),
        )
        for node in members
    )
    return modules[path], described


def _has_twin_around(path: str, around: Mapping[str, str | None], member: set[str]) -> bool:
    above = around.get(path)
    while above:
        if above in member:
            return True
        above = around.get(above)
    return False
