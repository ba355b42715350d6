"""Eigenpairs against torch.linalg.eigh and known spectra: multiple, clustered, deficient, indefinite."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.core import memory
from hesse.core.errors import MemoryBudgetError, NonFiniteError, NotConvergedError, StructureError, SymmetryError
from hesse.core.space import Space
from hesse.linalg import Eigen, eigsh, eigsh_rule
from hesse.operators import Congruence, Dense, Diagonal, Identity, Kronecker, LinearOperator, Tag

from .counted import HERMITIAN, PSD, SYMMETRIC, Counted, random_matrix, seeded, tree_space, with_spectrum

Sweep = Callable[[list, int], list]
N = 300
BULK = torch.rand(N, dtype=torch.float64, generator=seeded(5))
SPECTRA = {
    "decaying": torch.logspace(0, -6, N, dtype=torch.float64),
    "flat": BULK,
    "triple": torch.cat([torch.tensor([5.0, 5, 5, 4, 3, 2]), BULK[6:]]).double(),
    "tenfold": torch.cat([torch.full((10,), 5.0), torch.tensor([4.0, 3, 2]), BULK[13:]]).double(),
    "tenfold below": -torch.cat([torch.full((10,), 5.0), torch.tensor([4.0, 3, 2]), BULK[13:]]).double(),
    "clustered": torch.cat([3 + 1e-7 * torch.arange(9), torch.tensor([2.9, 2.5]), BULK[11:]]).double(),
    "rank deficient": torch.cat([BULK[:7] + 1, torch.zeros(N - 7)]).double(),
    "indefinite": torch.linspace(-1, 1.3, N, dtype=torch.float64),
    "plus and minus": torch.cat([torch.tensor([2.0, -2, 2, -2]), BULK[4:] - 0.5]).double(),
    "zero": torch.zeros(N, dtype=torch.float64),
    "identity": torch.ones(N, dtype=torch.float64),
}
KEYS = {"largest": lambda v: v, "smallest": lambda v: -v, "magnitude": lambda v: v.abs()}
DTYPES = {"float64": torch.float64, "complex128": torch.complex128, "float32": torch.float32}


def assert_eigenpairs(found: Eigen, M: Tensor, spectrum: Tensor, which: str, k: int, rtol: float) -> None:
    leaves = [found.vectors] if isinstance(found.vectors, Tensor) else _leaves(found.vectors)
    V = torch.cat([leaf.reshape(k, -1) for leaf in leaves], dim=-1)
    scale = max(float(spectrum.abs().max()), 1e-300)
    wanted = spectrum[KEYS[which](spectrum).argsort(descending=True)[:k]]
    values = found.values.double()
    if which == "magnitude":
        wanted, values = wanted.abs(), values.abs()
    torch.testing.assert_close(values, wanted, rtol=0, atol=rtol * scale)
    eps = torch.finfo(M.dtype).eps
    torch.testing.assert_close(V.conj() @ V.mT, torch.eye(k, dtype=M.dtype), rtol=0, atol=100 * eps)
    residuals = (V @ M.mT - found.values[:, None] * V).norm(dim=-1)
    torch.testing.assert_close(found.residuals, residuals, rtol=0, atol=100 * eps * scale)
    assert float(found.residuals.max()) <= rtol * scale


def _leaves(vectors: Any) -> list[Tensor]:
    return [vectors["w"], *vectors["a"]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECTRA)
def test_spectra(name: str, dtype: str, sweep: Sweep) -> None:
    spectrum, kind = SPECTRA[name], DTYPES[dtype]
    M = with_spectrum(spectrum, kind)
    space = tree_space(N, kind)
    for k, which in sweep(list(product((1, 3, 6, 13), KEYS)), 4):
        A = Counted(M, space, space, HERMITIAN)
        found = eigsh(A, k, which=which, generator=seeded(k))
        assert_eigenpairs(found, M, spectrum, which, k, 1e-6 if dtype != "float32" else 8e-6)
        assert found.products == sum(A.blocks) and not A.calls["mv"]
        assert found.values.dtype == M.real.dtype and found.vectors["w"].shape == (k, 2, 3)


def test_multiplicity_beyond_the_block_is_found() -> None:
    for seed in range(10):
        A = Counted(with_spectrum(SPECTRA["tenfold"], seed=seed), tags=HERMITIAN)
        found = eigsh(A, 12, generator=seeded(seed))
        expected = torch.tensor([5.0] * 10 + [4, 3], dtype=torch.float64)
        torch.testing.assert_close(found.values, expected)
        assert found.products < 300


def test_large_dimension_takes_few_products_and_little_memory() -> None:
    n = 20_000
    d = torch.cat([torch.tensor([9.0, 8, 8, 7]), torch.rand(n - 4, generator=seeded())]).double()
    space = Space.of(d)

    class Stretch(LinearOperator):
        in_space = out_space = space
        tags = SYMMETRIC

        def mv(self, v: Tensor) -> Tensor:
            return d * v

        def transpose(self) -> LinearOperator:
            return self

    with memory.memory("60MB"):
        found = eigsh(Stretch(), 4)
    torch.testing.assert_close(found.values, torch.tensor([9.0, 8, 8, 7], dtype=torch.float64))
    assert found.products < 150
    with memory.memory("3MB"), pytest.raises(MemoryBudgetError) as caught:
        eigsh(Stretch(), 4)
    with memory.memory(caught.value.least):
        found = eigsh(Stretch(), 4)
    torch.testing.assert_close(found.values, torch.tensor([9.0, 8, 8, 7], dtype=torch.float64))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("n", [1, 2, 9, 100])
def test_small_ones_go_dense(n: int, dtype: str) -> None:
    root = random_matrix(n, n, dtype=DTYPES[dtype])
    M = root + root.mH
    spectrum = torch.linalg.eigvalsh(M)
    for which in KEYS:
        for k in {1, n // 2 + 1, n}:
            A = Counted(M, tags=HERMITIAN)
            assert_eigenpairs(eigsh(A, k, which=which), M, spectrum, which, k, 1e-12)
            assert A.blocks == [n, k]


def test_structure() -> None:
    d = {"w": random_matrix(2, 3), "a": random_matrix(5)}
    flat = torch.cat([d["w"].flatten(), d["a"]])
    S, T = random_matrix(4, 4), random_matrix(3, 3, seed=1)
    S, T = S + S.mT, T + T.mT
    K = Kronecker(S, T, tags=HERMITIAN)
    for which in KEYS:
        for A, spectrum in (
            (Diagonal(d), flat),
            (-2 * Diagonal(d), -2 * flat),
            (K, torch.linalg.eigvalsh(torch.kron(S, T))),
            (0.5 * K, torch.linalg.eigvalsh(torch.kron(S, T)) / 2),
        ):
            k = 4
            expected = spectrum[KEYS[which](spectrum).argsort(descending=True)[:k]]
            assert eigsh_rule(A, k, which) is not None
            found = eigsh(A, k, which=which)
            torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-12)
            assert found.products == k and float(found.residuals.max()) < 1e-12
    skew = Kronecker(S - 2 * S.triu(1) - S.diag().diag(), T - 2 * T.triu(1) - T.diag().diag(), tags=HERMITIAN)
    M = torch.kron(skew.left, skew.right)
    assert torch.equal(M, M.mT)  # symmetric, though its factors are not
    torch.testing.assert_close(eigsh(skew, 2).values, torch.linalg.eigvalsh(M).flip(0)[:2])
    assert torch.equal(eigsh(Identity(K.in_space), 3).values, torch.ones(3, dtype=torch.float64))


def test_hard_ends_of_small_spectra_fall_back_to_the_matrix() -> None:
    A = Counted(with_spectrum(torch.logspace(0, -9, 500)), tags=PSD)
    found = eigsh(A, 2, which="smallest", rtol=1e-12)
    torch.testing.assert_close(found.values[:1], torch.tensor([1e-9], dtype=torch.float64), rtol=1e-5, atol=0)
    assert A.blocks[-2:] == [500, 2] and found.products == sum(A.blocks) <= 1010


def test_congruence_of_an_unstructured_operator() -> None:
    M = random_matrix(700, 300)
    found = eigsh(Congruence(Counted(M)), 5)
    torch.testing.assert_close(found.values, torch.linalg.svdvals(M)[:5].square())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    values = torch.cat([torch.tensor([8.0, 4.0]), torch.zeros(298)])
    A = Counted(with_spectrum(values, torch.float32).to(dtype), tags=SYMMETRIC)
    found = eigsh(A, 2)
    assert found.values.dtype == torch.float32 and found.vectors.dtype == dtype
    torch.testing.assert_close(found.values, values[:2], rtol=2e-2, atol=0)


def test_products_run_out() -> None:
    A = Counted(with_spectrum(SPECTRA["flat"]), tags=HERMITIAN)
    with pytest.raises(NotConvergedError, match="max_products") as caught:
        eigsh(A, 3, max_products=50)
    partial = caught.value.partial
    assert 40 < partial.products <= 53 and len(partial.values) == 3
    assert float(partial.residuals.max()) > 1e-6
    with pytest.warns(RuntimeWarning, match="residuals up to"):
        found = eigsh(A, 3, max_products=50, on_failure="return")
    assert torch.equal(found.values, partial.values)
    with pytest.raises(NotConvergedError) as caught:
        eigsh(Counted(with_spectrum(SPECTRA["zero"]), tags=HERMITIAN), 6, max_products=4)
    assert len(caught.value.partial.values) == 4  # nothing is made up for what was not reached


def test_an_operator_that_is_not_what_its_tag_says() -> None:
    with pytest.raises(NotConvergedError, match="check that A is Hermitian"):
        eigsh(Counted(random_matrix(300, 300), tags=SYMMETRIC), 2)
    with pytest.raises(NotConvergedError, match="check that A is Hermitian"):
        eigsh(Counted(random_matrix(20, 20), tags=SYMMETRIC), 2)


def test_random_state_is_untouched_and_results_repeat(untouched: None) -> None:
    A = Counted(with_spectrum(SPECTRA["triple"]), tags=HERMITIAN)
    first, second = eigsh(A, 2), eigsh(A, 2)
    assert torch.equal(first.vectors, second.vectors)


def test_refusals() -> None:
    M = random_matrix(4, 4)
    A = Counted(M + M.mT, tags=SYMMETRIC)
    with pytest.raises(SymmetryError, match=r"(?s)no tags.*Tag\.SYMMETRIC"):
        eigsh(Counted(M), 2)
    with pytest.raises(SymmetryError, match=r"(?s)SYMMETRIC.*Tag\.HERMITIAN"):
        eigsh(Dense(M + 1j * M, tags=SYMMETRIC), 2)
    with pytest.raises(SymmetryError):
        eigsh(Diagonal(torch.tensor([1j, 2])), 1)
    for k in (0, 5, -1):
        with pytest.raises(StructureError, match="1 <= k <= dim"):
            eigsh(A, k)
    with pytest.raises(StructureError, match="1 <= k <= dim"):
        eigsh(Counted(torch.zeros(0, 0), tags=frozenset(Tag)), 1)
    with pytest.raises(StructureError, match="'largest', 'smallest', 'magnitude'"):
        eigsh(A, 2, which="LM")
    with pytest.raises(StructureError, match="'raise', 'return'"):
        eigsh(A, 2, on_failure="warn")
    broken = torch.full((300, 300), torch.nan)
    with pytest.raises(NonFiniteError):
        eigsh(Counted(broken, tags=SYMMETRIC), 2)
