"""BackPACK: its extensions per sample and of second order, its `hessianfree` functions for products.

The loss is a sum for the per-sample quantities, so that rows are gradients of unreduced losses, as elsewhere.
A layer without an extension is refused: BackPACK itself only warns and leaves its parameters out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from backpack import backpack, extend
from backpack.extensions import KFAC, BatchGrad, BatchL2Grad, DiagGGNExact, DiagGGNMC, DiagHessian, SumGradSquared
from backpack.extensions.firstorder.base import FirstOrderBackpropExtension
from backpack.hessianfree.ggnvp import ggn_vector_product
from backpack.hessianfree.hvp import hessian_vector_product
from torch import Tensor, autograd, nn, stack

from benchmarks.libraries import Task, kronecker, per_sample
from benchmarks.models import Problem

DISTRIBUTION = "backpack-for-pytorch"


def _extended(extension: type, field: str, finish: Callable[[dict[str, Tensor]], Any]) -> Callable[[Problem], Task]:
    """An extension of the backward pass: of the summed loss for rows of samples, of the mean loss for curvature."""

    def prepare(problem: Problem) -> Task:
        of_rows = issubclass(extension, FirstOrderBackpropExtension)
        model = extend(copy.deepcopy(problem.model))
        loss = extend(problem.sum_loss if of_rows else copy.deepcopy(problem.loss))

        def run() -> Any:
            for param in model.parameters():
                param.grad = None
            with backpack(extension()):
                loss(model(problem.inputs), problem.targets).backward()
            _refuse_missing(model, field)
            result = finish({name: getattr(param, field) for name, param in model.named_parameters()})
            for param in model.parameters():
                delattr(param, field)
            return result

        return Task(run)

    return prepare


def _clipped_sum(problem: Problem) -> Task:
    """Two backward passes: one for the norms, one of the losses times their factors."""
    model, loss = extend(copy.deepcopy(problem.model)), extend(problem.sum_loss)

    def run() -> dict[str, Tensor]:
        output = model(problem.inputs)
        with backpack(BatchL2Grad(), retain_graph=True):
            loss(output, problem.targets).backward(retain_graph=True)
        _refuse_missing(model, "batch_l2")
        norms = _total_norms({name: param.batch_l2 for name, param in model.named_parameters()})
        factors = (problem.max_norm / norms).clamp(max=1.0)
        for param in model.parameters():
            param.grad = None
            del param.batch_l2
        (problem.sample_losses(output) * factors).sum().backward()
        return {name: param.grad for name, param in model.named_parameters()}

    return Task(run)


def _output_jacobian(problem: Problem) -> Task:
    """For one output a sample: the per-sample gradients of their sum."""
    model = extend(copy.deepcopy(problem.model))

    def run() -> dict[str, Tensor]:
        with backpack(BatchGrad()):
            model(problem.inputs).sum().backward()
        _refuse_missing(model, "grad_batch")
        return {name: param.grad_batch for name, param in model.named_parameters()}

    return Task(run)


def _kfac(problem: Problem) -> Task:
    """The factors are a parameter's list: of the output's side, and for a weight of the input's side."""
    run, _ = _extended(KFAC, "kfac", lambda factors: factors)(problem)
    return Task(run, lambda factors: kronecker.factors({name: tuple(pair) for name, pair in factors.items()}))


def _refuse_missing(model: nn.Module, field: str) -> None:
    layers = [layer for layer in model.modules() if any(not hasattr(p, field) for p in layer.parameters(False))]
    if layers:
        raise NotImplementedError(f"no {field} for {', '.join(sorted({type(layer).__name__ for layer in layers}))}")


def _total_norms(squared: Mapping[str, Tensor]) -> Tensor:
    return stack(list(squared.values())).sum(0).sqrt()


def _loss(problem: Problem) -> tuple[Tensor, Tensor]:
    output = problem.model(problem.inputs)
    return problem.loss(output, problem.targets), output


def _vectors(problem: Problem) -> list[list[Tensor]]:
    return [list(columns) for columns in zip(*problem.vectors.values(), strict=True)]


def _named(problem: Problem) -> Callable[[Any], dict[str, Tensor]]:
    return lambda product: dict(zip(problem.params, product, strict=True))


def _named_block(problem: Problem) -> Callable[[Any], dict[str, Tensor]]:
    return lambda products: dict(zip(problem.params, map(stack, zip(*products, strict=True)), strict=True))


def _hvp_first(problem: Problem) -> Task:
    params, v = list(problem.model.parameters()), list(problem.vector.values())
    return Task(lambda: hessian_vector_product(_loss(problem)[0], params, v), _named(problem))


def _hvp(problem: Problem) -> Callable[[list[Tensor]], Any]:
    params, loss = list(problem.model.parameters()), _loss(problem)[0]
    gradient = autograd.grad(loss, params, create_graph=True)
    return lambda v: hessian_vector_product(loss, params, v, grad_params=gradient)


def _hvp_kept(problem: Problem) -> Task:
    product, v = _hvp(problem), list(problem.vector.values())
    return Task(lambda: product(v), _named(problem))


def _hvp_block(problem: Problem) -> Task:
    product, vectors = _hvp(problem), _vectors(problem)
    return Task(lambda: [product(v) for v in vectors], _named_block(problem))


def _ggn_first(problem: Problem) -> Task:
    v = list(problem.vector.values())
    return Task(lambda: ggn_vector_product(*_loss(problem), problem.model, v), _named(problem))


def _ggn_kept(problem: Problem) -> Task:
    loss, output = _loss(problem)
    v = list(problem.vector.values())
    return Task(lambda: ggn_vector_product(loss, output, problem.model, v), _named(problem))


def _ggn_block(problem: Problem) -> Task:
    (loss, output), vectors = _loss(problem), _vectors(problem)
    return Task(lambda: [ggn_vector_product(loss, output, problem.model, v) for v in vectors], _named_block(problem))


TASKS: dict[str, Callable[[Any], Task]] = {
    "dense": _extended(BatchGrad, "grad_batch", lambda rows: rows),
    "norms": _extended(BatchL2Grad, "batch_l2", _total_norms),
    "squares": _extended(SumGradSquared, "sum_grad_squared", lambda sums: sums),
    "gram": _extended(BatchGrad, "grad_batch", per_sample.gram),
    "clipped_sum": _clipped_sum,
    "output_jacobian": _output_jacobian,
    "ggn_diagonal": _extended(DiagGGNExact, "diag_ggn_exact", lambda diagonals: diagonals),
    "hessian_diagonal": _extended(DiagHessian, "diag_h", lambda diagonals: diagonals),
    "ggn_diagonal_sampled": _extended(DiagGGNMC, "diag_ggn_mc", lambda diagonals: diagonals),
    "kfac": _kfac,
    "hvp_first": _hvp_first,
    "hvp_kept": _hvp_kept,
    "hvp_block": _hvp_block,
    "ggn_first": _ggn_first,
    "ggn_kept": _ggn_kept,
    "ggn_block": _ggn_block,
}
