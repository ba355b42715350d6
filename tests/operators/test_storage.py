"""Operators in files: the whole zoo there and back, and what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from hesse.check import assert_operator
from hesse.core.errors import DataError, NoRuleError, StructureError, UnsupportedError
from hesse.core.space import Space
from hesse.core.storage import save_tensors
from hesse.operators import BlockDiagonal, Dense, Diagonal, Kronecker, LinearOperator, LowRank, Tag
from hesse.operators.restriction import block_diagonal, restrict
from hesse.operators.storage import load, save, storable

from .zoo import Layer, drawing, flat, operators

T = drawing(torch.float64)
PSD = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD})
ZOO = {("real", name): case for name, case in operators(torch.float64).items()}
ZOO |= {("complex", name): case for name, case in operators(torch.complex128).items()}
COMPUTED = ("Function", "Average")
PLAIN = {"b": (T(2), [T(1, 2)]), "a": T(3)}


def holds_plain_trees(name: str) -> bool:
    return not any(word in name for word in ("named tuple", "dataclass", "nested"))


@pytest.mark.parametrize("key", [key for key in ZOO if not key[1].startswith(COMPUTED)], ids=": ".join)
def test_the_zoo_there_and_back(key: tuple[str, str], tmp_path: Path, untouched: None) -> None:
    A, M = ZOO[key]
    path = tmp_path / "a.safetensors"
    save(A, path)
    B, C = load(path), load(path, like=A)
    eps = torch.finfo(torch.float64).eps
    for loaded in (B, C):
        assert type(loaded) is type(A)
        assert loaded.tags == A.tags
        assert (loaded.in_space, loaded.out_space) == (A.in_space, A.out_space)
        assert loaded.in_space.dtypes == A.in_space.dtypes
        v = torch.randn(M.shape[1], dtype=M.dtype, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(loaded.flat @ v, A.flat @ v, rtol=100 * eps, atol=100 * eps)
        torch.testing.assert_close(loaded.flat @ v, M @ v, rtol=1e4 * eps, atol=1e4 * eps)
    assert C.in_space.structure == A.in_space.structure
    if holds_plain_trees(key[1]):
        assert B.in_space.structure == A.in_space.structure
        assert B.out_space.structure == A.out_space.structure
    assert repr(B) == repr(A)


def test_blocks_on_a_given_space_and_restrictions(tmp_path: Path) -> None:
    space = Space.of({"l.weight": T(2, 3), "l.bias": T(2), "s": T()})
    blocks = {"l": Kronecker(T(2, 2), T(4, 4), *[Space.of((T(2, 3), T(2)))] * 2), "s": Diagonal(T())}
    whole = Dense(T(9, 9), space, space)
    whole.mass = 2.5
    for A in (
        BlockDiagonal(blocks, space),
        block_diagonal(whole),
        block_diagonal(whole, {"x": ["l.weight", "s"], "y": ["l.bias"]}),
        restrict(whole, ["s", "l.bias"], out=["l.weight"]),
    ):
        save(A, tmp_path / "a")
        B = load(tmp_path / "a")
        v = T(A.shape[1])
        assert torch.equal(B.flat @ v, A.flat @ v)
        assert (B.in_space, B.out_space, B.mass) == (A.in_space, A.out_space, A.mass)
        assert_operator(B)


def test_equal_tensors_are_stored_once_and_the_low_rank_form_is_kept(tmp_path: Path) -> None:
    left = T(5, 2)
    A = LowRank(left) + LowRank(left, T(2), T(5, 2))
    save(A, tmp_path / "a")
    stored = safetensors.torch.load_file(tmp_path / "a")
    assert sorted(tuple(t.shape) for t in stored.values()) == [(2,), (2,), (5, 2), (5, 2)]
    B: Any = load(tmp_path / "a")
    assert B.terms[0].right is B.terms[0].left
    assert B.terms[0].tags == PSD


class Net(nn.Module):
    def __init__(self, width: int = 3, name: str = "head", frozen: bool = False) -> None:
        super().__init__()
        self.body = nn.Linear(2, width)
        setattr(self, name, nn.Linear(width, 1))
        self.body.bias.requires_grad_(not frozen)


def test_what_is_loaded_has_to_fit_the_model(tmp_path: Path) -> None:
    parameters = dict(Net().named_parameters())
    save(Diagonal({name: p.detach() for name, p in parameters.items()}), tmp_path / "d")
    for like in (Net(), (lambda p, x: x, parameters), parameters, Space.of(parameters), Diagonal(parameters)):
        A = load(tmp_path / "d", like=like)
        assert A.in_space.names == tuple(parameters)
        assert torch.equal(A.entries["head.weight"], parameters["head.weight"])  # pyright: ignore
    for other, message in (
        (Net(width=4), r"'body.weight' of shape \[3, 2\] in the file, \[4, 2\] here"),
        (Net(name="top"), r"a leaf 'head.weight', which is not there"),
        (Net(frozen=True), r"a leaf 'body.bias', which is not there"),
        (dict(reversed(parameters.items())), "leaves in the order"),
        ({**parameters, "more": T(1)}, "no leaf 'more' in the file"),
    ):
        with pytest.raises(StructureError, match=message):
            load(tmp_path / "d", like=other)


def test_trees_of_other_types_come_back_by_path_or_as_in_the_example(tmp_path: Path) -> None:
    tree = Layer(T(2), T(3))
    save(Diagonal(tree), tmp_path / "d")
    plain: Any = load(tmp_path / "d")
    assert list(plain.entries) == ["weight", "bias"]
    alike: Any = load(tmp_path / "d", like=tree)
    assert isinstance(alike.entries, Layer)
    torch.testing.assert_close(flat(alike @ tree), flat(tree) ** 2)
    save(Diagonal(PLAIN), tmp_path / "p")
    nested: Any = load(tmp_path / "p")
    assert isinstance(nested.entries["b"], tuple) and isinstance(nested.entries["b"][1], list)


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_onto_a_device(device: str, tmp_path: Path) -> None:
    A = Dense(T(5, 5), Space.of({"w": T(2, 2), "b": T(1)}))
    save(A, tmp_path / "a")
    for B in (load(tmp_path / "a", device=device), load(tmp_path / "a", like={"w": T(2, 2).to(device), "b": T(1).to(device)})):
        assert B.in_space.device.type == device
        v = {"w": T(2, 2), "b": T(1)}
        moved = {name: leaf.to(device) for name, leaf in v.items()}
        torch.testing.assert_close((B @ moved).cpu(), A @ v)


@pytest.mark.parametrize("name", ["Function", "Average"])
def test_computed_operators_have_no_rule(name: str, tmp_path: Path) -> None:
    for A in (ZOO["real", name][0], 2 * ZOO["real", name][0]):
        with pytest.raises(NoRuleError, match=f"no storing rule for {name}(.|\n)*store its matrix"):
            save(A, tmp_path / "f")
    assert not list(tmp_path.iterdir())


class Shifted(LinearOperator):
    """``v -> c v + d``'s linear part, made again by a class method."""

    def __init__(self, factors: dict[str, tuple[float, complex]], inner: LinearOperator) -> None:
        self.factors, self.inner = factors, inner
        self.in_space, self.out_space = inner.in_space, inner.out_space

    @classmethod
    def from_stored(cls, factors: dict[str, tuple[float, complex]], inner: LinearOperator, note: Any) -> Shifted:
        assert note == [None, True, 3, "text", 1.5]
        return cls(factors, inner)

    def mv(self, v: Any) -> Any:
        return self.factors["a"][0] * self.inner.mv(v)

    def transpose(self) -> LinearOperator:
        return Shifted(self.factors, self.inner.T)


def test_other_packages_register_their_types(tmp_path: Path) -> None:
    A = Shifted({"a": (2.0, 1 - 2j)}, Diagonal(T(3)))
    with pytest.raises(NoRuleError, match="Shifted"):
        save(A, tmp_path / "s")
    rule: Callable[[Any], dict[str, Any]] = lambda A: {  # noqa: E731
        "factors": A.factors,
        "inner": A.inner,
        "note": [None, True, 3, "text", 1.5],
    }
    storable.register(Shifted)(rule)
    try:
        save(A, tmp_path / "s")
        B: Any = load(tmp_path / "s")
        assert B.factors == {"a": (2.0, 1 - 2j)}
        v = T(3)
        assert torch.equal(B @ v, A @ v)
        storable.register(Shifted)(lambda A: {"factors": {1: object()}})
        with pytest.raises(UnsupportedError, match=r"a dict at 'operator.factors'"):
            save(A, tmp_path / "t")
    finally:
        del storable._rules[Shifted]
    with pytest.raises(NoRuleError, match=r"Shifted(.|\n)*import the package"):
        load(tmp_path / "s")


def test_a_subclass_is_not_stored_as_its_base(tmp_path: Path) -> None:
    class Special(Dense):
        pass

    with pytest.raises(NoRuleError, match="Special"):
        save(Special(T(2, 2)), tmp_path / "s")


def test_inconsistent_files_are_refused(tmp_path: Path) -> None:
    save(Dense(T(2, 3)), tmp_path / "a")
    with safetensors.safe_open(tmp_path / "a", framework="pt") as file:
        header = json.loads(file.metadata()["hesse"])["header"]
    matrix = {"operator.matrix": T(2, 3)}
    save_tensors(tmp_path / "b", {}, "operator", header)
    wrong = [{}, {**header, "spaces": []}, {**header, "operator": {"operator": ["Dense", {"x": 1}]}}]
    wrong += [{**header, "operator": {"shell": "x"}}, {**header, "operator": {}}]
    wrong += [{**header, "spaces": [{**header["spaces"][0], "dtypes": ["load"]}] * 2}]
    with pytest.raises(DataError, match="not consistent"):
        load(tmp_path / "b")
    for changed in wrong:
        save_tensors(tmp_path / "c", matrix, "operator", changed)
        with pytest.raises(DataError, match="not consistent"):
            load(tmp_path / "c")
    save_tensors(tmp_path / "d", {"operator.matrix": T(2, 4)}, "operator", header)
    with pytest.raises(StructureError, match="does not fit"):
        load(tmp_path / "d")
