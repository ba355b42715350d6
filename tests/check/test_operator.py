"""Operators broken on purpose, each in one law, which is the one found; right ones raise no alarm."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from scipy.sparse.linalg import aslinearoperator
from torch import Tensor

from hesse.check.operator import BrokenLawError, assert_operator, check_operator
from hesse.check.operators.run import OPERATOR_LAWS
from hesse.core.errors import HesseError, StructureError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.linalg.dense import dense_rule
from hesse.operators import Dense, FlatOperator, LinearOperator, Tag

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
        self.matrix, self.origin, self.tags = matrix, origin, origin.tags
        self.in_space, self.out_space = origin.out_space, origin.in_space

    def mv(self, v: Tree) -> Tree:
        return self.out_space.unravel(self.matrix @ self.in_space.ravel(v))

    def transpose(self) -> LinearOperator:
        return self.origin.parts.get("back", lambda op: op)(self.origin)


class WithMatrix(Broken):
    pass


class WithFlat(Broken):
    flat = property(lambda op: FlatOperator(2 * Dense(op.matrix, op.in_space, op.out_space)))  # type: ignore[assignment]


class WithScipy(Broken):
    def to_scipy(self) -> Any:  # type: ignore[override]
        return aslinearoperator(self.matrix.numpy()[::-1])


@dense_rule.register(WithMatrix)
def _wrong_matrix(A: WithMatrix, memory: Any = None) -> Tensor:
    return A.matrix.flip(0)


def own(op: LinearOperator, V: Tree) -> Tree:
    return LinearOperator.mm(op, V)


def mutate(op: Broken, v: Tree) -> Tree:
    result = op.right(v)
    v["b"].mul_(2)
    return result


def count_calls(op: Broken, v: Tree) -> Tree:
    op.parts["calls"] = op.parts.get("calls", 0) + 1
    return op.parts["calls"] * op.right(v)


def third_call(op: Broken, v: Tree) -> Tree:
    op.parts["calls"] = op.parts.get("calls", 0) + 1
    return op.right(v) * (1 if op.parts["calls"] % 7 else 2)


def consume_randomness(op: Broken, v: Tree) -> Tree:
    torch.rand(1)
    return op.right(v)


def switch_grad_mode(op: Broken, v: Tree) -> Tree:
    torch.set_grad_enabled(not torch.is_grad_enabled())
    return op.right(v)


def reuse_result(op: Broken, v: Tree) -> Tree:
    buffer = op.parts.setdefault("buffer", torch.empty(2, dtype=op.matrix.dtype))
    return buffer.copy_(op.right(v))


def repeat_first(op: Broken, V: Tree) -> Tree:
    return op.right({key: leaf[0] for key, leaf in V.items()}).expand(len(V["a"]), -1).clone()


def six_at_most_five(op: Broken, V: Tree) -> Tree:
    good = own(op, V)
    return torch.cat([good[:5], 0 * good[5:]])


def needs_grad_mode(op: Broken, v: Tree) -> Tree:
    return op.right(v) if torch.is_grad_enabled() else 0 * op.right(v)


def by_default_dtype(op: Broken, v: Tree) -> Tree:
    return op.right(v) * (1 if torch.get_default_dtype() == torch.float32 else 2)


def on_storage(op: Broken, v: Tree) -> Tree:
    b = v["b"]
    start = b.storage_offset()
    return op.right({"b": torch.tensor(b.untyped_storage().tolist() and torch.as_strided(b, (2,), (1,), start).tolist(),
                                       dtype=b.dtype), "a": v["a"]})  # fmt: skip


def only_contiguous(op: Broken, V: Tree) -> Tree:
    wrong = V["b"].shape[0] > 1 and not V["b"].is_contiguous()
    return own(op, V) * (2 if wrong else 1)


def cubed(op: Broken, v: Tree) -> Tree:  # homogeneous, not additive
    y = op.right(v)
    return y**3 / y.square().sum()


CASES: dict[str, tuple[Callable[[], LinearOperator], set[str]]] = {
    "affine": (lambda: Broken(mv=lambda op, v: op.right(v) + 1), {"homogeneous", "additive", "zero"}),
    "absolute value": (lambda: Broken(mv=lambda op, v: op.right(v).abs()), {"homogeneous", "additive"}),
    "homogeneous, not additive": (lambda: Broken(mv=lambda op, v: cubed(op, v).nan_to_num()), {"additive"}),
    "small values cut": (
        lambda: Broken(mv=lambda op, v: torch.where(op.right(v).abs() < 0.05, 0, op.right(v))), {"homogeneous"}
    ),
    "wrong at zero only": (
        lambda: Broken(mv=lambda op, v: op.right(v) + (1.0 if not any(leaf.any() for leaf in v.values()) else 0.0)), {"zero"}
    ),
    "nan": (lambda: Broken(mv=lambda op, v: op.right(v) * torch.nan), {"finite"}),
    "nearly linear": (lambda: Broken(mv=lambda op, v: op.right(v) * (1 + 1e-8 * v["a"])), {"homogeneous", "additive"}),
    "only real-linear": (
        lambda: Broken(MATRIX.to(torch.complex128), mv=lambda op, v: op.right(v).conj()), {"homogeneous"}
    ),
    "scaled transpose": (lambda: Broken(transpose=lambda op: 2 * op.matrix.mT), {"adjoint"}),
    "one entry of the transpose": (
        lambda: Broken(transpose=lambda op: op.matrix.mT + 1e-6 * torch.eye(3, 2)), {"adjoint"}
    ),
    "adjoint for transpose": (
        lambda: Broken(torch.complex(MATRIX, MATRIX.flip(0)), transpose=lambda op: op.matrix.mH), {"adjoint"}
    ),
    "square, not transposed": (lambda: Broken(SQUARE.triu(), transpose=lambda op: op.matrix), {"adjoint"}),
    "transpose gives NaN": (lambda: Broken(transpose=lambda op: op.matrix.mT * torch.nan), {"finite"}),
    "transpose between wrong spaces": (lambda: Broken(transpose=lambda op: op), {"spaces"}),
    "transpose of transpose": (lambda: Broken(back=lambda op: Broken(-op.matrix)), {"transpose"}),
    "mm repeats the first": (lambda: Broken(mm=repeat_first), {"blocks"}),
    "mm scaled": (lambda: Broken(mm=lambda op, V: 1.5 * own(op, V)), {"blocks"}),
    "mm in the wrong order": (lambda: Broken(mm=lambda op, V: own(op, V).flip(0)), {"blocks"}),
    "mm of six vectors": (lambda: Broken(mm=six_at_most_five), {"batch axes"}),
    "mm wrong in other strides": (lambda: Broken(mm=only_contiguous), {"strides"}),
    "mutates its input": (lambda: Broken(mv=mutate), {"side effects"}),
    "mm mutates its input": (
        lambda: Broken(mm=lambda op, V: (own(op, V), V["a"].zero_())[0]), {"side effects"}
    ),
    "global randomness": (lambda: Broken(mv=consume_randomness), {"side effects"}),
    "grad mode": (lambda: Broken(mv=switch_grad_mode), {"side effects"}),
    "keeps state": (lambda: Broken(mv=count_calls), {"repeatable"}),
    "re-uses its result": (lambda: Broken(mv=reuse_result), {"fresh results"}),
    "needs grad mode": (lambda: Broken(mv=needs_grad_mode), {"modes"}),
    "reads storage": (lambda: Broken(mv=on_storage), {"strides"}),
    "other dtype": (lambda: Broken(mv=lambda op, v: op.right(v).float()), {"spaces"}),
    "other shape": (lambda: Broken(mv=lambda op, v: op.right(v)[None]), {"spaces"}),
    "other paths": (lambda: Broken(SQUARE, mv=lambda op, v: {"c": v["b"], "a": v["a"]}), {"spaces"}),
    "a number": (lambda: Broken(SQUARE, mv=lambda op, v: {"b": v["b"], "a": 1.0}), {"spaces"}),
    "mm without the axis": (lambda: Broken(mm=lambda op, V: torch.zeros(2).double()), {"spaces"}),
    "wrong rule of dense": (WithMatrix, {"matrix"}),
    "wrong on flat tensors": (WithFlat, {"flat"}),
    "wrong in SciPy": (WithScipy, {"scipy"}),
    "not symmetric": (lambda: Broken(SQUARE.triu(), frozenset({Tag.SYMMETRIC})), {"tags"}),
    "symmetric, not Hermitian": (lambda: Broken(SQUARE * 1j, frozenset({Tag.HERMITIAN})), {"tags"}),
    "Hermitian, not symmetric": (
        lambda: Broken(SQUARE + 1j * (SQUARE.triu(1) - SQUARE.tril(-1)), frozenset({Tag.SYMMETRIC})), {"tags"}
    ),
    "not Hermitian, tagged PSD": (lambda: Broken(SQUARE + SQUARE.triu(1), frozenset({Tag.PSD})), {"tags"}),
    "one eigenvalue barely negative": (
        lambda: Broken(torch.diag(torch.tensor([1.0, 2.0, -1e-6])).double(), frozenset({Tag.PSD})), {"tags"}
    ),
    "not diagonal": (lambda: Broken(SQUARE, frozenset({Tag.DIAGONAL})), {"tags"}),
    "tagged, not square": (lambda: Broken(MATRIX, frozenset({Tag.DIAGONAL})), {"tags"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_broken_operator_breaks_its_law_and_no_other(name: str, untouched: None) -> None:
    make, laws = CASES[name]
    report = check_operator(make())
    assert {finding.check for finding in report.findings} == laws, str(report)
    assert report.verdict == "wrong"
    assert {row.check for row in report.compared if row.verdict == "wrong"} == laws


@pytest.mark.parametrize("name", [name for name, (_, laws) in CASES.items() if len(laws) == 1])
def test_a_law_asked_alone_is_found_broken_and_the_reproducer_shows_it(name: str) -> None:
    make, (law, *_) = CASES[name]
    assert not check_operator(make(), laws=[law]).ok
    reproducer = check_operator(make()).reproducer
    with pytest.raises(BrokenLawError):
        exec(f"import hesse.check.operator as hesse\n{reproducer}", {"A": make()})


@pytest.mark.parametrize("mv", [third_call, by_default_dtype])
def test_the_full_level_finds_more(mv: Callable[..., Tree]) -> None:
    assert not check_operator(Broken(mv=mv), level="full").ok
    if mv is by_default_dtype:
        assert check_operator(Broken(mv=mv)).ok


def test_blocks_of_no_vectors_are_checked_at_full() -> None:
    def refuse_none(op: Broken, V: Tree) -> Tree:
        assert len(V["a"]), "no vectors"
        return own(op, V)

    assert check_operator(Broken(mm=refuse_none)).ok
    (finding,) = check_operator(Broken(mm=refuse_none), level="full").findings
    assert finding.check == "blocks"
    assert "no vectors" in finding.diagnosis


def test_the_transpose_is_checked_as_an_operator_at_full() -> None:
    class HalfBack(Back):
        def mm(self, V: Tree) -> Tree:
            good = own(self, V)
            return {key: torch.cat([leaf[:5], 0 * leaf[5:]]) for key, leaf in good.items()}

    A = Broken(transpose=lambda op: HalfBack(op.matrix.mT, op))
    assert check_operator(A).ok
    assert {finding.check for finding in check_operator(A, level="full").findings} == {"blocks"}


@pytest.mark.parametrize("level", ["quick", "full"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex128, torch.complex64])
def test_right_operators_pass(dtype: torch.dtype, level: Any, untouched: None) -> None:
    for A in (Broken(MATRIX.to(dtype)), Broken(MATRIX.to(dtype)).T,
              Broken(SQUARE.to(dtype), frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD}))):  # fmt: skip
        for seed in range(3):
            report = check_operator(A, level=level, generator=torch.Generator().manual_seed(seed))
            assert report.ok, str(report)
            assert not report.notes
            assert not report.reproducer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_large_operators_pass(dtype: torch.dtype) -> None:
    root = torch.randn(300, 7, dtype=dtype, generator=torch.Generator().manual_seed(1))
    assert_operator(Dense(root @ root.mT, tags=frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD})))
    assert_operator(Dense(root.contiguous()))
    assert_operator(Dense(torch.zeros(3, 2, dtype=dtype)))
    assert_operator(Dense(torch.eye(40, dtype=dtype), tags=frozenset({Tag.SYMMETRIC, Tag.PSD, Tag.DIAGONAL})))


def test_large_operators_are_decided_by_random_vectors() -> None:
    wrong = torch.randn(60, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    class Wrong(Dense):
        def transpose(self) -> LinearOperator:
            other = self.matrix.mT.clone()
            other[3, 5] += 1e-4
            return Dense(other)

    report = check_operator(Wrong(wrong))
    assert {finding.check for finding in report.findings} == {"adjoint", "transpose"}
    dense_rule.register(Wrong, lambda A, memory=None: A.matrix + 1e-5)
    assert not check_operator(Wrong(wrong), laws=["matrix"]).ok


@pytest.mark.parametrize("value", [-1.0, -1e-3])
def test_one_negative_eigenvalue_among_many_is_caught(value: float) -> None:
    values = torch.ones(300, dtype=torch.float64)
    values[7] = value
    A = Dense(torch.diag(values), tags=frozenset({Tag.PSD, Tag.HERMITIAN, Tag.SYMMETRIC}))
    (finding,) = check_operator(A).findings
    assert finding.check == "tags"
    assert "no eigenvalue is negative" in finding.diagnosis


def test_findings_name_leaf_index_numbers_and_pattern() -> None:
    def wrong_element(op: Broken, v: Tree) -> Tree:
        good = op.right(v)
        return {"b": good["b"], "a": good["a"].clone() + v["a"].abs()}

    (first, *_) = check_operator(Broken(SQUARE, mv=wrong_element)).findings
    assert (first.leaf, first.index, first.check) == ("a", (0,), "homogeneous")
    (entry,) = check_operator(Broken(transpose=lambda op: op.matrix.mT + torch.eye(3, 2))).findings
    assert isinstance(entry.value, float)
    assert isinstance(entry.expected, float)
    assert entry.value - entry.expected == pytest.approx(1.0)
    (factor,) = check_operator(Broken(transpose=lambda op: 2 * op.matrix.mT)).findings
    assert "factor 2.000" in factor.diagnosis
    (conjugate,) = check_operator(CASES["adjoint for transpose"][0]()).findings
    assert "complex conjugate" in conjugate.diagnosis


def test_what_depends_on_a_broken_law_is_not_compared_and_said_so() -> None:
    report = check_operator(Broken(mv=count_calls))
    assert any("since 'repeatable' is broken" in note and "adjoint" in note for note in report.notes)
    assert "adjoint" not in {row.check for row in report.compared}


def test_rtol_widens_the_tolerance() -> None:
    wrong = lambda op: op.matrix.mT * (1 + 1e-6)  # noqa: E731
    assert not check_operator(Broken(transpose=wrong)).ok
    assert check_operator(Broken(transpose=wrong), rtol=1e-4).ok


def test_generator_decides_the_vectors() -> None:
    seen: list[Tree] = []

    def spy(op: Broken, v: Tree) -> Tree:
        seen.append(copy.deepcopy(v))
        return op.right(v)

    for seed in (1, 1, 2):
        check_operator(Broken(mv=spy), generator=torch.Generator().manual_seed(seed))
    runs = [seen[k * len(seen) // 3] for k in range(3)]
    assert torch.equal(runs[0]["b"], runs[1]["b"])
    assert not torch.equal(runs[0]["b"], runs[2]["b"])


def test_evaluations_count_products() -> None:
    calls = []

    def spy(op: Broken, v: Tree) -> Tree:
        calls.append(1)
        return op.right(v)

    report = check_operator(Broken(mv=spy), laws=["homogeneous", "additive", "zero", "repeatable"])
    transposed = 1 + 5  # zero and repeatable ask both sides
    assert report.evaluations == len(calls) + transposed


def test_the_error_is_typed_lists_the_laws_and_pickles() -> None:
    with pytest.raises(BrokenLawError) as caught:
        assert_operator(Broken(transpose=lambda op: 2 * op.matrix.mT, mm=repeat_first))
    error = caught.value
    assert isinstance(error, AssertionError)
    assert isinstance(error, HesseError)
    assert set(error.laws) == {"adjoint", "blocks"}
    assert "mend transpose()" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.laws) == (str(error), error.laws)


def test_exceptions_are_findings_and_causes() -> None:
    def refuse(op: Broken) -> LinearOperator:
        raise NotImplementedError("nothing here")

    (finding,) = check_operator(Broken(transpose=refuse)).findings
    assert (finding.check, "NotImplementedError: nothing here" in finding.diagnosis) == ("transpose", True)
    with pytest.raises(BrokenLawError) as caught:
        assert_operator(Broken(back=refuse))
    assert isinstance(caught.value.__cause__, NotImplementedError)


def test_an_operator_that_crashes_is_checked_in_a_process_of_its_own() -> None:
    right, wrong = Broken(), Broken(mm=lambda op, V: os.abort())
    assert check_operator(right, isolated=True) == check_operator(right)
    assert_operator(right, isolated=True)
    with pytest.raises(BrokenLawError, match="SIGABRT") as caught:
        assert_operator(wrong, isolated=True)
    assert caught.value.laws == ("spaces",)


def test_other_things_and_names_are_refused() -> None:
    for wrong, remedy in (
        (torch.nn.Linear(2, 2), "check_module"), (MATRIX, "Dense"), (MATRIX.numpy(), "Dense"),
        ((len, len), "Function"), (torch.sin, "linearize"), ("text", "mv and transpose"),
    ):  # fmt: skip
        with pytest.raises(StructureError, match=remedy):
            check_operator(wrong)
    for options in ({"level": "thorough"}, {"laws": ["linear"]}, {"laws": "adjoint"}):
        with pytest.raises(StructureError):
            check_operator(Broken(), **options)
    assert set(OPERATOR_LAWS) >= {law for _, laws in CASES.values() for law in laws}


def scipy_operator(**parts: Any) -> ScipyOperator:
    M = parts.pop("matrix", np.array([[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]]))
    products = {"matvec": lambda v: M @ v, "rmatvec": lambda u: M.conj().T @ u} | parts
    return ScipyOperator(shape=M.shape, dtype=M.dtype, **products)


@pytest.mark.parametrize("matrix", [MATRIX.numpy(), MATRIX.numpy() * (1 - 2j), MATRIX.numpy().astype(np.float32)])
def test_right_scipy_operators_pass(matrix: Any) -> None:
    for level in ("quick", "full"):
        for A in (scipy_operator(matrix=matrix), aslinearoperator(csr_array(matrix)), aslinearoperator(matrix)):
            report = check_operator(A, level=level)
            assert report.ok, str(report)
            assert "adjoint" in {row.check for row in report.compared}


def test_broken_scipy_operators_are_caught() -> None:
    M = MATRIX.numpy()
    for parts, laws in (
        ({"rmatvec": lambda u: 2 * (M.T @ u)}, {"adjoint"}),
        ({"matrix": M * 1j, "rmatvec": lambda u: (M * 1j).T @ u}, {"adjoint"}),
        ({"matmat": lambda V: 2 * (M @ V)}, {"blocks"}),
        ({"matvec": lambda v: (M @ v, v.fill(0))[0]}, {"side effects"}),
    ):
        report = check_operator(scipy_operator(**parts))
        assert {finding.check for finding in report.findings} == laws, str(report)


def test_a_scipy_operator_may_lack_its_adjoint() -> None:
    M = MATRIX.numpy()
    report = check_operator(ScipyOperator(shape=M.shape, matvec=lambda v: M @ v, dtype=M.dtype))
    assert report.ok
    assert "no rmatvec" in report.notes[0]
    assert "adjoint" not in {row.check for row in report.compared}


def test_a_vector_in_the_null_space_is_no_question_of_strides() -> None:
    """Of an expanded vector, all of whose elements are equal, a matrix of differences leaves nothing but rounding."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        centered = torch.rand(40, 12, generator=generator, dtype=torch.float64)
        centered -= centered.mean(1, keepdim=True)
        assert check_operator(Dense(centered), generator=generator).ok
