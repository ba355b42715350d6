"""Questions asked of operators: ``name -> case``."""

from __future__ import annotations

from typing import Any

import torch

import hesse

from .cases_curvature import CASES as _CURVATURE
from .cases_curvature import LOSS, Case
from .place import Place

CASES: dict[str, Case] = {}


def case(*names: str) -> Any:
    """Register a case under the public names that it runs."""

    def keep(run: Case) -> Case:
        for name in names:
            assert name not in _CURVATURE
            CASES[name] = run
        return run

    return keep


def damped(p: Place) -> Any:
    G = hesse.ggn(p.network(), LOSS, p.batch())
    return G + 0.5 * hesse.identity(G.in_space)


@case("dense")
def _dense(p: Place) -> Any:
    return hesse.dense(damped(p)), hesse.dense(hesse.loss_hessian(p.network(), LOSS, p.batch()))


@case("diagonal", "DiagonalEstimate")
def _diagonal(p: Place) -> Any:
    return hesse.diagonal(damped(p)), hesse.diagonal(p.positive())


@case("trace", "Estimate")
def _trace(p: Place) -> Any:
    return float(hesse.trace(damped(p))), float(hesse.trace(p.positive()))


@case("norm")
def _norm(p: Place) -> Any:
    return [float(hesse.norm(p.positive(), ord=kind)) for kind in ("fro", 2)]


@case("squared_norm")
def _squared_norm(p: Place) -> Any:
    return float(hesse.squared_norm(p.positive()))


@case("solve", "Solution")
def _solve(p: Place) -> Any:
    A, D = p.positive(), damped(p)
    return hesse.solve(A, p.vector(A)), hesse.solve(D, p.vector(D), on_failure="return")


@case("lstsq")
def _lstsq(p: Place) -> Any:
    A = p.matrix(6, 3)
    return hesse.lstsq(A, p.vector(A.T))


@case("pinv")
def _pinv(p: Place) -> Any:
    A = p.matrix(6, 3)
    return hesse.pinv(A) @ p.vector(A.T)


@case("svd", "Svd")
def _svd(p: Place) -> Any:
    return hesse.svd(p.matrix(6, 3), 2).values


@case("eigsh", "Eigen")
def _eigsh(p: Place) -> Any:
    return hesse.eigsh(p.positive(), 2).values, hesse.eigsh(damped(p), 2, on_failure="return").values


@case("logdet")
def _logdet(p: Place) -> Any:
    return float(hesse.logdet(p.positive()))


@case("slogdet", "SignLog")
def _slogdet(p: Place) -> Any:
    return hesse.slogdet(p.positive()).logabs


@case("condition")
def _condition(p: Place) -> Any:
    return float(hesse.condition(p.positive()))


@case("rank", "Rank")
def _rank(p: Place) -> Any:
    return float(int(hesse.rank(p.matrix(6, 3))))


@case("null_space")
def _null_space(p: Place) -> Any:
    N = hesse.null_space(p.matrix(2, 3))
    return N.mT @ N if N.shape[-1] == 1 else N @ N.mT


@case("spectrum", "Spectrum")
def _spectrum(p: Place) -> Any:
    found = hesse.spectrum(p.positive())
    return found.grid.min(), found.grid.max()


@case("function_trace")
def _function_trace(p: Place) -> Any:
    return float(hesse.function_trace(p.positive(), torch.sqrt))


@case("effective_dimension")
def _effective_dimension(p: Place) -> Any:
    return float(hesse.effective_dimension(p.positive(), 0.5))


@case("factor", "Factorization")
def _factor(p: Place) -> Any:
    A = p.positive()
    return hesse.solve(hesse.factor(A), p.vector(A))


@case("jacobi")
def _jacobi(p: Place) -> Any:
    A = p.positive()
    return hesse.jacobi(A) @ p.vector(A)


@case("nystrom")
def _nystrom(p: Place) -> Any:
    A = p.positive()
    return hesse.nystrom(A, 4, damping=1.0) @ p.vector(A)


@case("deflation")
def _deflation(p: Place) -> Any:
    A = p.positive()
    return hesse.deflation(hesse.eigsh(A, 2), damping=1.0) @ p.vector(A)


@case("low_rank_plus_diagonal")
def _low_rank(p: Place) -> Any:
    A = p.positive()
    return hesse.low_rank_plus_diagonal(A, 2) @ p.vector(A)


@case("identity", "LinearOperator", "Tag", "Space", "operators")
def _algebra(p: Place) -> Any:
    A, B = p.positive(), p.matrix(3, 4)
    one = hesse.identity(A.in_space)
    C = B @ (A + 2 * one) @ B.T
    return C @ p.vector(C), A.flat @ p.tensor(4, 2), A.in_space.ravel(one @ p.vector(A))


@case("restrict")
def _restrict(p: Place) -> Any:
    R = hesse.restrict(hesse.ggn(p.network(), LOSS, p.batch()), ["0.weight", "2.bias"])
    return R @ p.vector(R)


@case("block_diagonal")
def _block_diagonal(p: Place) -> Any:
    B = hesse.block_diagonal(hesse.ggn(p.network(), LOSS, p.batch()))
    return B @ p.vector(B)
