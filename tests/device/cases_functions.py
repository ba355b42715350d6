"""Derivatives of functions, sparse ones, convolutions, checks and diagnoses: ``name -> case``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hesse
from hesse.autodiff.compiled.compile_products import compile_products
from hesse.autodiff.compiled.products import CompiledProducts

from .cases_curvature import Case
from .place import Place

CASES: dict[str, Case] = {}


def case(*names: str) -> Any:
    """Register a case under the public names that it runs."""

    def keep(run: Case) -> Case:
        for name in names:
            CASES[name] = run
        return run

    return keep


def smooth(x: Tensor) -> Tensor:
    return (x.sin() * x.roll(1)).sum()


def chain(x: Tensor) -> Tensor:
    return x[1:] ** 2 * x[:-1].cos()


@case("grad", "GradResult", "compiling")
def _grad(p: Place) -> Any:
    x, params = p.tensor(4, 3), {"W": p.tensor(3, 2, seed=1), "b": p.tensor(2, seed=2)}

    def loss(q: Any, given: Tensor) -> Tensor:
        return torch.tanh(given @ q["W"] + q["b"]).square().sum()

    found = hesse.grad(loss)(params, x)
    df = hesse.grad(loss, compile="replay")
    df(params, x)
    again = df(params, x)
    return found.grads, found.value, again.grads, again.value


@case("linearize", "Linearization")
def _linearize(p: Place) -> Any:
    made = hesse.linearize(lambda x: x.sin() * x.sum(), p.tensor(5))
    J = made.jacobian
    return made.value, J @ p.tensor(5, seed=1), J.T @ p.tensor(5, seed=2), J.mm(p.tensor(3, 5)), J.T.mm(p.tensor(3, 5))


@case("jacobian", "JacobianResult")
def _jacobian(p: Place) -> Any:
    dense = hesse.jacobian(chain, p.tensor(5))
    batched = hesse.jacobian(lambda x: x.sin() * x.sum(1, keepdim=True), p.tensor(4, 3), structure="batched")
    sparse = hesse.jacobian(chain, p.tensor(5), structure="sparse")
    return dense, batched, sparse


@case("hessian", "HessianResult")
def _hessian(p: Place) -> Any:
    return hesse.hessian(smooth, p.tensor(5)), hesse.hessian(smooth, p.tensor(5), structure="sparse")


@case("hessian_operator")
def _hessian_operator(p: Place) -> Any:
    H = hesse.hessian_operator(smooth, p.tensor(5))
    return H.value, H.gradient, H @ p.tensor(5, seed=1), H.mm(p.tensor(3, 5))


@case("compile_products")
def _compile_products(p: Place) -> Any:
    C = compile_products(hesse.hessian_operator(smooth, p.tensor(5)))
    found = [C @ p.tensor(5, seed=seed) for seed in range(5)]
    assert isinstance(C, CompiledProducts)
    assert C.replays == 2, C.direct
    return found


@case("laplacian", "LaplacianResult")
def _laplacian(p: Place) -> Any:
    return hesse.laplacian(smooth, p.tensor(5))


@case("divergence", "DivergenceResult")
def _divergence(p: Place) -> Any:
    return hesse.divergence(lambda x: x.sin() * x.sum(), p.tensor(5))


@case("fisher_information", "Information", "InformationWarning")
def _fisher_information(p: Place) -> Any:
    x = p.tensor(9)

    def log_likelihood(theta: Any) -> Tensor:
        return (-0.5 * ((x - theta["mean"]) / theta["scale"]) ** 2 - theta["scale"].log()).sum()

    theta = {"mean": p.tensor(1, seed=1)[0], "scale": p.tensor(1, seed=2)[0].abs() + 1}
    return hesse.fisher_information(log_likelihood, theta).matrix


@case("functional")
def _functional(p: Place) -> Any:
    f, params = hesse.functional(p.network())
    return f(params, p.batch()[0])


@case("custom_vjp")
def _custom_vjp(p: Place) -> Any:
    @hesse.custom_vjp
    def cube(x: Tensor) -> Tensor:
        return x**3

    @cube.vjp
    def _(g: Tensor, value: Tensor, x: Tensor) -> Tensor:
        return 3 * x**2 * g

    return hesse.grad(lambda x: cube(x).sum())(p.tensor(4)).grads


@case("sparsity", "Sparsity", "Pattern")
def _sparsity(p: Place) -> Any:
    return float(hesse.sparsity(chain, p.tensor(5)).pattern.nnz)


@case("coloring", "ColoredPattern")
def _coloring(p: Place) -> Any:
    return float(hesse.coloring(hesse.sparsity(chain, p.tensor(5)).pattern).colors)


@case("prepare_jacobian", "SparseJacobian", "SparseDerivative")
def _prepare_jacobian(p: Place) -> Any:
    prepared = hesse.prepare_jacobian(chain, p.tensor(5))
    return [[value, J.to_dense()] for value, J in (prepared(p.tensor(5, seed=seed)) for seed in range(3))]


@case("prepare_hessian", "SparseHessian")
def _prepare_hessian(p: Place) -> Any:
    prepared = hesse.prepare_hessian(smooth, p.tensor(5))
    return [[value, H.to_dense()] for value, H in (prepared(p.tensor(5, seed=seed)) for seed in range(3))]


@case("convolution", "ConditionWarning", "TruncationWarning")
def _convolution(p: Place) -> Any:
    weight = p.tensor(2, 3, 3, 3)
    found: list[Any] = []
    settings: list[dict[str, Any]] = [{"padding": 1}, {"padding": 1, "padding_mode": "circular"}, {"stride": 2}]
    for options in settings:
        C = hesse.convolution(weight, (3, 6, 5), **options)
        x = p.vector(C)
        found += [C @ x, C.T @ p.vector(C.T), hesse.lstsq(C, C @ x)]
    return found


@case("save", "load")
def _save(p: Place) -> Any:
    A = p.positive()
    with tempfile.TemporaryDirectory() as folder:
        hesse.save(A, Path(folder) / "a.safetensors")
        B = hesse.load(Path(folder) / "a.safetensors", device=p.device)
    assert B.in_space.device.type == torch.device(p.device).type
    return B @ p.vector(A)


@case("check_derivatives", "assert_derivatives", "CheckReport", "WrongDerivativeError")
def _check_derivatives(p: Place) -> Any:
    return float(hesse.check_derivatives(smooth, p.tensor(5)).ok)


@case("check_module", "assert_module")
def _check_module(p: Place) -> Any:
    return float(hesse.check_module(p.network(), p.batch()[0]).ok)


@case("check_operator", "assert_operator")
def _check_operator(p: Place) -> Any:
    operators = p.positive(), hesse.hessian_operator(smooth, p.tensor(5))
    return [float(hesse.check_operator(A).ok) for A in operators]


@case("find_nonfinite", "watch_nonfinite", "debug")
def _find_nonfinite(p: Place) -> Any:
    x = p.tensor(4).requires_grad_()
    report = hesse.find_nonfinite(lambda: (-x.abs() - 1).log().sum())
    clean = hesse.find_nonfinite(lambda: x.abs().sum())
    return float(report.found), float(clean.found)


@case("trace_graph")
def _trace_graph(p: Place) -> Any:
    return float(len(hesse.trace_graph(smooth, p.tensor(4)).to_dot()) > 0)


@case("memory", "progress")
def _contexts(p: Place) -> Any:
    with hesse.memory("64MiB"), hesse.progress():
        return hesse.parameter_jacobian(p.network(), nn.CrossEntropyLoss(), p.batch()).norms()


@case("nn")
def _nn(p: Place) -> Any:
    layer = p.filled(hesse.nn.ReceptiveFieldConv2d(lambda pixels, weights: pixels * weights, 2, 3, 3))
    x = p.tensor(2, 2, 6, 7).requires_grad_()
    out = layer(x)
    return out, torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])


@case("optim")
def _optim(p: Place) -> Any:
    params = {"W": p.tensor(3, 2)}
    df = hesse.grad(lambda q, x: (x @ q["W"]).square().sum())
    step = hesse.optim(df, params, lambda leaves: torch.optim.SGD(leaves, lr=0.01))
    found = step(p.tensor(4, 3, seed=1))
    return found.value, params
