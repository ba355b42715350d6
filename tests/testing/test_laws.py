"""Operators broken on purpose, each caught by the law that it breaks."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.core.errors import HesseError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators import Dense, LinearOperator, Tag
from hesse.testing import BrokenLawError, assert_operator_laws, assert_tags

MATRIX = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]], dtype=torch.float64)
SQUARE = torch.tensor([[2.0, -1.0, 0.5], [-1.0, 3.0, 0.0], [0.5, 0.0, 1.0]], dtype=torch.float64)


class Broken(LinearOperator):
    """A right operator on ``{"b": [2], "a": [1]}`` (or from it) whose parts can be replaced one by one."""

    def __init__(self, matrix: Tensor = MATRIX, tags: frozenset[Tag] = frozenset(), **parts: Any) -> None:
        dtype = matrix.dtype
        self.matrix, self.parts, self.tags = matrix, parts, tags
        self.in_space = Space.of({"b": torch.zeros(2, dtype=dtype), "a": torch.zeros(1, dtype=dtype)})
        self.out_space = Space.of(torch.zeros(2, dtype=dtype)) if len(matrix) == 2 else self.in_space

    def right(self, v: Tree) -> Tree:
        return self.out_space.unravel(self.matrix @ torch.cat([v["b"], v["a"]]))

    def mv(self, v: Tree) -> Tree:
        return self.parts.get("mv", Broken.right)(self, v)

    def mm(self, V: Tree) -> Tree:
        return self.parts["mm"](self, V) if "mm" in self.parts else super().mm(V)

    def transpose(self) -> LinearOperator:
        wrong = self.parts.get("transpose", lambda op: op.matrix.mT)(self)
        return wrong if isinstance(wrong, LinearOperator) else Back(wrong, self)


class Back(LinearOperator):
    def __init__(self, matrix: Tensor, origin: Broken) -> None:
        self.matrix, self.origin = matrix, origin
        self.in_space, self.out_space = origin.out_space, origin.in_space

    def mv(self, v: Tree) -> Tree:
        return self.out_space.unravel(self.matrix @ self.in_space.ravel(v))

    def transpose(self) -> LinearOperator:
        return self.origin.parts.get("back", lambda op: op)(self.origin)


def mutate(op: Broken, v: Tree) -> Tree:
    result = op.right(v)
    v["b"].mul_(2)
    return result


def count_calls(op: Broken, v: Tree) -> Tree:
    op.parts["calls"] = op.parts.get("calls", 0) + 1
    return op.parts["calls"] * op.right(v)


def consume_randomness(op: Broken, v: Tree) -> Tree:
    torch.rand(1)
    return op.right(v)


def switch_grad_mode(op: Broken, v: Tree) -> Tree:
    torch.set_grad_enabled(not torch.is_grad_enabled())
    return op.right(v)


def repeat_first(op: Broken, V: Tree) -> Tree:
    return op.right({key: leaf[0] for key, leaf in V.items()}).expand(len(V["a"]), -1)


def reverse_order(op: Broken, V: Tree) -> Tree:
    return LinearOperator.mm(op, {key: leaf.flip(0) for key, leaf in V.items()})


def only_second_leaf_batched(op: Broken, V: Tree) -> Tree:
    return torch.stack([op.right({"b": V["b"][0], "a": a}) for a in V["a"]])


CASES: dict[str, tuple[Callable[[], LinearOperator], str]] = {
    "affine": (lambda: Broken(mv=lambda op, v: op.right(v) + 1), "linear"),
    "nonlinear": (lambda: Broken(mv=lambda op, v: op.right(v).abs()), "linear"),
    "nan": (lambda: Broken(mv=lambda op, v: op.right(v) * torch.nan), "linear"),
    "nearly linear": (lambda: Broken(mv=lambda op, v: op.right(v) * (1 + 1e-8 * v["a"])), "linear"),
    "only real-linear": (
        lambda: Broken(MATRIX.to(torch.complex128), mv=lambda op, v: op.right(v).conj()), "linear"
    ),
    "scaled transpose": (lambda: Broken(transpose=lambda op: 2 * op.matrix.mT), "adjoint"),
    "one entry of the transpose": (
        lambda: Broken(transpose=lambda op: op.matrix.mT + 1e-6 * torch.eye(3, 2)), "adjoint"
    ),
    "adjoint for transpose": (
        lambda: Broken(torch.complex(MATRIX, MATRIX.flip(0)), transpose=lambda op: op.matrix.mH), "adjoint"
    ),
    "transpose gives NaN": (lambda: Broken(transpose=lambda op: op.matrix.mT * torch.nan), "adjoint"),
    "transpose between wrong spaces": (lambda: Broken(transpose=lambda op: op), "spaces"),
    "transpose of transpose": (lambda: Broken(back=lambda op: Broken(-op.matrix)), "transpose"),
    "mm repeats the first": (lambda: Broken(mm=repeat_first), "mm"),
    "mm mixes vectors": (lambda: Broken(mm=only_second_leaf_batched), "mm"),
    "mm in the wrong order": (lambda: Broken(mm=reverse_order), "batch axes"),
    "mm wrong in flat": (lambda: Broken(mm=lambda op, V: 1.5 * LinearOperator.mm(op, V)), "flat"),
    "mm wrong in scipy": (lambda: Broken(mm=lambda op, V: 1.5 * LinearOperator.mm(op, V)), "scipy"),
    "mutates its input": (lambda: Broken(mv=mutate), "no side effects"),
    "global randomness": (lambda: Broken(mv=consume_randomness), "no side effects"),
    "grad mode": (lambda: Broken(mv=switch_grad_mode), "no side effects"),
    "keeps state": (lambda: Broken(mv=count_calls), "repeatable"),
    "other dtype": (lambda: Broken(mv=lambda op, v: op.right(v).float()), "spaces"),
    "other shape": (lambda: Broken(mv=lambda op, v: op.right(v)[None]), "spaces"),
    "other paths": (lambda: Broken(SQUARE, mv=lambda op, v: {"c": v["b"], "a": v["a"]}), "spaces"),
    "mm without the axis": (lambda: Broken(mm=lambda op, V: torch.zeros(2).double()), "spaces"),
    "not symmetric": (lambda: Broken(SQUARE.triu(), frozenset({Tag.SYMMETRIC})), "tags"),
    "symmetric, not Hermitian": (lambda: Broken(SQUARE * 1j, frozenset({Tag.HERMITIAN})), "tags"),
    "Hermitian, not symmetric": (
        lambda: Broken(SQUARE + 1j * (SQUARE.triu(1) - SQUARE.tril(-1)), frozenset({Tag.SYMMETRIC})), "tags"
    ),
    "not Hermitian, tagged PSD": (lambda: Broken(SQUARE + SQUARE.triu(1), frozenset({Tag.PSD})), "tags"),
    "one eigenvalue barely negative": (
        lambda: Broken(torch.diag(torch.tensor([1.0, 2.0, -1e-6])).double(), frozenset({Tag.PSD})), "tags"
    ),
    "not diagonal": (lambda: Broken(SQUARE, frozenset({Tag.DIAGONAL})), "tags"),
    "tagged, not square": (lambda: Broken(MATRIX, frozenset({Tag.DIAGONAL})), "tags"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_broken_operator_is_caught_by_the_right_law(name: str) -> None:
    make, law = CASES[name]
    grad_mode = torch.is_grad_enabled()
    try:
        with pytest.raises(BrokenLawError) as caught:
            assert_operator_laws(make())
    finally:
        torch.set_grad_enabled(grad_mode)
    assert law in caught.value.laws
    assert f"'{law}'" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex128, torch.complex64])
def test_right_operators_pass(dtype: torch.dtype, untouched: None) -> None:
    assert_operator_laws(Broken(MATRIX.to(dtype)))
    assert_operator_laws(Broken(MATRIX.to(dtype)).T)
    everything = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD})
    assert_operator_laws(Broken(SQUARE.to(dtype), everything))


def test_singular_psd_passes() -> None:
    root = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_operator_laws(Dense(root @ root.mT, tags=frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD})))


def test_zero_operator_passes() -> None:
    assert_operator_laws(Dense(torch.zeros(3, 2, dtype=torch.float64)))


def test_large_indefinite_operator_is_caught_by_quadratic_forms() -> None:
    A = Dense(-torch.eye(300, dtype=torch.float64), tags=frozenset({Tag.PSD}))
    with pytest.raises(BrokenLawError, match="v\\* A v >= 0"):
        assert_tags(A)


def test_rtol_widens_the_tolerance() -> None:
    wrong = lambda op: op.matrix.mT * (1 + 1e-6)  # noqa: E731
    with pytest.raises(BrokenLawError):
        assert_operator_laws(Broken(transpose=wrong))
    assert_operator_laws(Broken(transpose=wrong), rtol=1e-4)


def test_generator_decides_the_vectors() -> None:
    seen: list[Tree] = []

    def spy(op: Broken, v: Tree) -> Tree:
        seen.append(copy.deepcopy(v))
        return op.right(v)

    for seed in (1, 1, 2):
        assert_operator_laws(Broken(mv=spy), generator=torch.Generator().manual_seed(seed))
    runs = [seen[k * len(seen) // 3] for k in range(3)]
    assert torch.equal(runs[0]["b"], runs[1]["b"])
    assert not torch.equal(runs[0]["b"], runs[2]["b"])


def test_the_error_is_typed_numbered_and_lists_all_laws() -> None:
    with pytest.raises(BrokenLawError) as caught:
        assert_operator_laws(Broken(transpose=lambda op: 2 * op.matrix.mT, mm=only_second_leaf_batched))
    error = caught.value
    assert isinstance(error, AssertionError)
    assert isinstance(error, HesseError)
    assert {"adjoint", "mm", "batch axes"} <= set(error.laws)
    assert re.search(r"found: -?[\d.]+ against -?[\d.]+; relative difference 0\.\d+ > 6.7e-11", str(error))
    assert "remedy: mend transpose()" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.laws) == (str(error), error.laws)


def test_other_exceptions_say_which_law_was_checked() -> None:
    def refuse(op: Broken) -> LinearOperator:
        raise NotImplementedError("no transpose")

    with pytest.raises(NotImplementedError) as caught:
        assert_operator_laws(Broken(back=refuse))
    assert any("assert_transpose" in note for note in caught.value.__notes__)
