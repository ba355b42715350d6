"""Curvature, per-sample quantities and kernels: ``name -> case``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

import hesse

from .place import Place

Case = Callable[[Place], Any]
CASES: dict[str, Case] = {}
LOSS = nn.CrossEntropyLoss(label_smoothing=0.1)


def case(*names: str) -> Callable[[Case], Case]:
    """Register a case under the public names that it runs."""

    def keep(run: Case) -> Case:
        for name in names:
            CASES[name] = run
        return run

    return keep


@case("loss_hessian")
def _loss_hessian(p: Place) -> Any:
    H: Any = hesse.loss_hessian(p.network(), LOSS, p.batch())
    v = p.vector(H)
    block = {name: part.expand(3, *part.shape) for name, part in v.items()}
    C = hesse.loss_hessian(p.convolutional(), LOSS, p.images())
    return H @ v, H.mm(block), H.gradient, C @ p.vector(C)


@case("ggn")
def _ggn(p: Place) -> Any:
    G = hesse.ggn(p.network(), LOSS, p.batch())
    C = hesse.ggn(p.convolutional(), LOSS, p.images())
    return G @ p.vector(G), hesse.diagonal(G), float(hesse.trace(G)), C @ p.vector(C), hesse.diagonal(C)


@case("fisher")
def _fisher(p: Place) -> Any:
    model, loss = p.network(), nn.CrossEntropyLoss()
    made = [hesse.fisher(model, loss, p.batch(), kind=kind) for kind in ("expected", "empirical", "observed")]
    return [F @ p.vector(F) for F in made]


@case("kfac", "KroneckerFactored")
def _kfac(p: Place) -> Any:
    K = hesse.kfac(p.network(), nn.CrossEntropyLoss(), p.batch(), kind="empirical")
    C = hesse.kfac(p.convolutional(), nn.CrossEntropyLoss(), p.images(), kind="empirical")
    return K @ p.vector(K), C @ p.vector(C), hesse.solve(K + 0.5 * hesse.identity(K.in_space), p.vector(K))


@case("ekfac")
def _ekfac(p: Place) -> Any:
    E = hesse.ekfac(p.network(), nn.CrossEntropyLoss(), p.batch(), kind="empirical")
    return float(hesse.trace(E))


@case("parameter_jacobian", "ParameterJacobian")
def _parameter_jacobian(p: Place) -> Any:
    J = hesse.parameter_jacobian(p.network(), LOSS, p.batch())
    C = hesse.parameter_jacobian(p.convolutional(), LOSS, p.images())
    out = hesse.parameter_jacobian(p.network(), None, p.batch())
    return (
        J.norms(), J.dense(), J.sum_of_squares(), J.gram(), J.clipped_sum(0.1), J.mean(), J.variance(), J @ p.vector(J),
        J.T @ p.vector(J.T), C.norms(), C.dense(), C.gram(), C.sum_of_squares(), out.dense(), out.gram(),
    )  # fmt: skip


@case("ntk", "TangentKernel")
def _ntk(p: Place) -> Any:
    x = p.batch()[0]
    return hesse.ntk(p.network(), x).tensor(), hesse.ntk(p.network(), x, x[:3]).tensor()


@case("input_hessian")
def _input_hessian(p: Place) -> Any:
    H = hesse.input_hessian(p.network(), LOSS, p.batch())
    return H @ p.vector(H), H.blocks(), hesse.diagonal(H)


@case("activation_hessian")
def _activation_hessian(p: Place) -> Any:
    H = hesse.activation_hessian(p.network(), LOSS, p.batch(), "0")
    return H @ p.vector(H), H.blocks()


@case("output_hessian")
def _output_hessian(p: Place) -> Any:
    H = hesse.output_hessian(nn.CrossEntropyLoss(), p.tensor(7, 3), p.batch()[1])
    return H @ p.vector(H), hesse.diagonal(H)


@case("diagonal_by_sample")
def _diagonal_by_sample(p: Place) -> Any:
    return hesse.diagonal_by_sample(hesse.ggn(p.network(), LOSS, p.batch()))


@case("propagated_diagonal")
def _propagated_diagonal(p: Place) -> Any:
    return hesse.propagated_diagonal(p.network(), nn.CrossEntropyLoss(), p.batch())


@case("average")
def _average(p: Place) -> Any:
    x, y = p.batch()
    model = p.network()
    A = hesse.average(lambda batch: hesse.ggn(model, LOSS, batch), [(x[:4], y[:4]), (x[4:], y[4:])])
    return A @ p.vector(A)


@case("GaussianNLL")
def _gaussian(p: Place) -> Any:
    model = p.filled(nn.Linear(5, 2))
    G = hesse.ggn(model, hesse.GaussianNLL(), (p.batch()[0], p.tensor(7, 1, seed=9)))
    return G @ p.vector(G)
