"""Trees: round trips, paths, order, static leaves, partition and combine."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any, NamedTuple

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st

from hesse.core import tree

Pair = namedtuple("Pair", ["second", "first"])


class Typed(NamedTuple):
    y: Any
    x: Any = None


@dataclasses.dataclass
class Plain:
    weight: Any
    bias: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    z: Any
    a: Any


@dataclasses.dataclass
class Derived:
    """A field that no constructor argument sets, and a constructor that refuses what it does not know."""

    value: Any
    twice: Any = dataclasses.field(init=False)
    calls: Any = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.value, torch.Tensor):
            raise TypeError("value must be a tensor")
        self.twice = 2 * self.value
        self.calls += 1


class ThirdParty:
    """A container of another library, which registers it with torch."""

    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = left, right


pytree.register_pytree_node(
    ThirdParty, lambda node: ([node.left, node.right], "context"), lambda children, _: ThirdParty(*children)
)


@dataclasses.dataclass
class Registered:
    """A dataclass that its library registers with torch in its own way: what it hides stays hidden."""

    shown: Any
    hidden: Any = "as it was made"


pytree.register_pytree_node(Registered, lambda node: ([node.shown], None), lambda children, _: Registered(children[0]))


def t(*shape: int) -> torch.Tensor:
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)


def same(first: Any, second: Any) -> bool:
    """Equality of two trees, container types and order included, written without hesse."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if dataclasses.is_dataclass(first):
        return all(same(getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(first))
    if isinstance(first, ThirdParty):
        return same(first.left, second.left) and same(first.right, second.right)
    return first == second


CONTAINERS: dict[str, tuple[Any, list[str]]] = {
    "bare": (t(2), [""]),
    "float": (2.5, [""]),
    "complex": (1 + 2j, [""]),
    "dict": ({"b": t(2), "a": t(1)}, ["b", "a"]),
    "dict with other keys": ({3: t(2), ("x", 1): t(1)}, ["3", "('x', 1)"]),
    "OrderedDict": (OrderedDict([("b", t(2)), ("a", t(1))]), ["b", "a"]),
    "defaultdict": (defaultdict(list, {"b": t(2), "a": t(1)}), ["b", "a"]),
    "list": ([t(2), [t(1)]], ["0", "1.0"]),
    "tuple": ((t(2), (t(1), t(3))), ["0", "1.0", "1.1"]),
    "namedtuple": (Pair(t(2), t(1)), ["second", "first"]),
    "NamedTuple": (Typed(t(2), {"k": t(1)}), ["y", "x.k"]),
    "dataclass": (Plain(t(2), t(1)), ["weight", "bias"]),
    "frozen with slots": (Frozen(t(2), Frozen(t(1), t(3))), ["z", "a.z", "a.a"]),
    "init=False": (Derived(t(2)), ["value", "twice"]),
    "nested": (
        {"z": [Plain((t(1), Pair(t(2), 0.5)), {"k": Frozen(t(3), t())}), t(4)], "a": t(5)},
        [
            "z.0.weight.0",
            "z.0.weight.1.second",
            "z.0.weight.1.first",
            "z.0.bias.k.z",
            "z.0.bias.k.a",
            "z.1",
            "a",
        ],
    ),
    "static": ({"name": "conv", "w": t(2), "n": 3, "on": True, "none": None, "b": 1.5}, ["w", "b"]),
    "only static": ([1, "a", None, True], []),
    "empty": ({}, []),
    "empty parts": ({"a": [], "b": (), "c": t(1)}, ["c"]),
    "third party": ([ThirdParty({"b": t(2)}, Plain(t(1), 3))], ["0.0.b", "0.1.weight"]),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_round_trip_and_paths(name: str) -> None:
    value, paths = CONTAINERS[name]
    leaves, structure = tree.flatten(value)
    assert same(structure.unflatten(leaves), value)
    assert [path for path, _ in tree.named_leaves(value)] == paths
    assert len(leaves) == len(paths)
    for by_flatten, by_leaves, (_, by_name) in zip(leaves, tree.leaves(value), tree.named_leaves(value), strict=True):
        assert by_flatten is by_leaves is by_name


@pytest.mark.parametrize("name", CONTAINERS)
def test_partition_and_combine(name: str) -> None:
    value, paths = CONTAINERS[name]
    kept, others = tree.partition(value, lambda path, leaf: len(path) % 2 == 0)
    assert [path for path, _ in tree.named_leaves(kept)] == [p for p in paths if len(p) % 2 == 0]
    assert [path for path, _ in tree.named_leaves(others)] == [p for p in paths if len(p) % 2 == 1]
    assert same(tree.combine(kept, others), value)
    assert same(tree.combine(others, kept), value)


def test_partition_sees_path_and_leaf() -> None:
    value = {"b": t(2), "a": [t(3), t(1)]}
    seen = []
    tree.partition(value, lambda path, leaf: bool(seen.append((path, tuple(leaf.shape)))))
    assert seen == [("b", (2,)), ("a.0", (3,)), ("a.1", (1,))]


def test_a_dataclass_is_rebuilt_without_its_constructor() -> None:
    doubled = tree.map_tree(lambda leaf: leaf.tolist(), Derived(t(2)))
    assert isinstance(doubled, Derived)
    assert (doubled.value, doubled.twice, doubled.calls) == ([1.0, 2.0], [2.0, 4.0], 1)


def test_a_field_that_was_never_set_stays_unset() -> None:
    value = Derived.__new__(Derived)
    value.value = t(2)
    leaves, structure = tree.flatten(value)
    again = structure.unflatten(leaves)
    assert torch.equal(again.value, t(2))
    assert not hasattr(again, "twice")


def test_a_registered_dataclass_is_walked_as_its_library_says() -> None:
    value = {"a": Registered(t(2), t(3))}
    assert [leaf.shape for leaf in tree.leaves(value)] == [(2,)]
    assert [path for path, _ in tree.named_leaves(value)] == ["a.0"]
    doubled = tree.map_tree(lambda leaf: 2 * leaf, value)["a"]
    assert torch.equal(doubled.shown, 2 * t(2))
    assert doubled.hidden == "as it was made"


def test_dataclass_types_are_leaves_and_not_walked() -> None:
    leaves, structure = tree.flatten({"type": Plain, "w": t(1)})
    assert len(leaves) == 1
    assert structure.unflatten(leaves)["type"] is Plain


def test_order_is_insertion_never_sorted() -> None:
    forward = {f"k{i}": float(i) for i in range(12)}
    backward = dict(reversed(forward.items()))
    assert tree.leaves(backward) == list(reversed(tree.leaves(forward)))
    assert list(tree.map_tree(lambda leaf: leaf, backward)) == list(backward)


def test_flatten_leaves_the_tree_alone() -> None:
    inner = Plain(t(2), None)
    value = {"b": inner, "a": [t(1)]}
    tree.flatten(value)
    tree.map_tree(lambda leaf: leaf + 1, value)
    assert value["b"] is inner
    assert torch.equal(inner.weight, t(2))


def test_structures_compare() -> None:
    def structure(value: Any) -> tree.Structure:
        return tree.flatten(value)[1]

    assert structure({"a": t(2), "n": 1}) == structure({"a": t(3), "n": 1})
    assert structure({"a": t(2), "n": 1}) != structure({"a": t(2), "n": 2})
    assert structure({"a": t(2)}) != structure({"b": t(2)})
    assert structure([t(2)]) != structure((t(2),))


def test_map_tree_over_several_trees_and_static_leaves() -> None:
    first = {"b": t(2), "n": 7, "a": 1.5}
    second = {"b": t(2), "n": 8, "a": 2.0}
    result = tree.map_tree(lambda x, y: x + y, first, second)
    assert same(result, {"b": 2 * t(2), "n": 7, "a": 3.5})


def test_map_tree_refuses_trees_with_other_numbers_of_leaves() -> None:
    with pytest.raises(ValueError):
        tree.map_tree(lambda x, y: x + y, {"a": t(1)}, {"a": t(1), "b": t(1)})


@pytest.mark.parametrize("leaf", [t(2), torch.tensor(1), torch.tensor(True), 1.0, 1j])
def test_variables(leaf: Any) -> None:
    assert tree.is_variable(leaf)


@pytest.mark.parametrize("leaf", [1, True, "text", None, object, len])
def test_not_variables(leaf: Any) -> None:
    assert not tree.is_variable(leaf)


def test_inner_is_bilinear_without_conjugation() -> None:
    u = {"b": torch.tensor([1.0 + 1j, 2.0]), "a": torch.tensor(1j)}
    v = {"b": torch.tensor([1j, 3.0]), "a": torch.tensor(2j)}
    assert tree.inner(u, v).item() == (1 + 1j) * 1j + 6 + 1j * 2j
    assert tree.inner({}, {}).item() == 0


LEAVES = st.one_of(
    st.floats(allow_nan=False),
    st.integers(1, 3).map(t),
    st.tuples(st.integers(1, 2), st.integers(1, 3)).map(lambda shape: t(*shape)),
    st.none(),
    st.integers(),
    st.booleans(),
    st.text(max_size=3),
)
KEYS = st.one_of(st.text("abcxyz", min_size=1, max_size=3), st.integers(0, 9))
NESTED = st.recursive(
    LEAVES,
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.dictionaries(KEYS, children, max_size=3),
        st.dictionaries(KEYS, children, max_size=3).map(OrderedDict),
        st.builds(Pair, children, children),
        st.builds(Typed, children, children),
        st.builds(Plain, children, children),
        st.builds(Frozen, children, children),
        st.builds(ThirdParty, children, children),
    ),
    max_leaves=12,
)


@st.composite
def any_tree(draw: st.DrawFn) -> Any:
    return draw(NESTED)


@given(any_tree())
def test_any_tree_comes_back(value: Any) -> None:
    leaves, structure = tree.flatten(value)
    assert all(tree.is_variable(leaf) for leaf in leaves)
    assert same(structure.unflatten(leaves), value)
    assert same(tree.map_tree(lambda leaf: leaf, value), value)


@given(any_tree(), st.randoms(use_true_random=False))
def test_any_partition_is_undone(value: Any, rng: Any) -> None:
    kept, others = tree.partition(value, lambda path, leaf: rng.random() < 0.5)
    assert len(tree.leaves(kept)) + len(tree.leaves(others)) == len(tree.leaves(value))
    assert same(tree.combine(kept, others), value)


@given(any_tree())
def test_paths_lead_to_their_leaves(value: Any) -> None:
    for path, leaf in tree.named_leaves(value):
        node = value
        for part in path.split(".") if path else []:
            if isinstance(node, dict):
                node = next(child for key, child in node.items() if str(key) == part)
            elif isinstance(node, ThirdParty):
                node = (node.left, node.right)[int(part)]
            else:
                node = node[int(part)] if part.isdigit() else getattr(node, part)
        same_key = isinstance(node, (float, torch.Tensor))  # keys 1 and "1" have one spelling
        assert node is leaf or same_key


A, B = torch.arange(6.0).reshape(2, 3), torch.ones(4)


@pytest.mark.parametrize(
    "nest",
    [
        {"b": A, "a": [B, (A, 2.0, None)], 3: ({}, [], "text", True, 1j)},
        [A, torch.nn.Parameter(B), [{"x": (B,)}]],
        (A, {"x": OrderedDict(z=A, y=[B])}, 7),
        A,
        2.0,
        None,
        {},
    ],
)
def test_plain_nests_are_walked_as_pytree_does(nest: Any) -> None:
    everything, spec = pytree.tree_flatten(nest)
    found, structure = tree.flatten(nest)
    chosen = [leaf for leaf in everything if isinstance(leaf, (torch.Tensor, float, complex))]
    assert structure.spec == spec and structure.spec.num_leaves == len(everything)
    assert list(map(id, found)) == list(map(id, chosen)) == list(map(id, tree.leaves(nest)))
    assert structure.static == tuple((i, leaf) for i, leaf in enumerate(everything) if not any(leaf is c for c in chosen))
    again = structure.unflatten(found)
    assert pytree.tree_flatten(again)[1] == spec and list(map(id, pytree.tree_leaves(again))) == list(map(id, everything))
    assert isinstance(nest, (torch.Tensor, float, type(None))) or again is not nest
