"""torch.func: `vmap(grad)` per sample, `jvp`, `vjp` and their compositions, as its documentation has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, diag, multinomial, outer, softmax
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

from benchmarks.libraries import Task, per_sample
from benchmarks.models import CLASSES, Problem, SmallFunctions

DISTRIBUTION = "torch"

Params = dict[str, Tensor]


def _params(problem: Problem) -> Params:
    return {name: param.detach() for name, param in problem.params.items()}


def _rows(problem: Problem) -> Callable[[], Params]:
    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return sum_loss(functional_call(problem.model, params, (x[None],)), y[None])

    sum_loss = problem.sum_loss
    gradients, params = vmap(grad(loss), in_dims=(None, 0, 0)), _params(problem)
    return lambda: gradients(params, problem.inputs, problem.targets)


def _from_rows(contract: Callable[[Params], Any]) -> Callable[[Problem], Task]:
    def prepare(problem: Problem) -> Task:
        rows = _rows(problem)
        return Task(lambda: contract(rows()))

    return prepare


def _clipped_sum(problem: Problem) -> Task:
    rows = _rows(problem)
    return Task(lambda: per_sample.clipped_sum(rows(), problem.max_norm))


def _output_rows(problem: Problem) -> Callable[[], Params]:
    def output(params: Params, x: Tensor) -> Tensor:
        return functional_call(problem.model, params, (x[None],))[0]

    jacobians, params = vmap(jacrev(output), in_dims=(None, 0)), _params(problem)
    return lambda: jacobians(params, problem.inputs)


def _output_jacobian(problem: Problem) -> Task:
    return Task(_output_rows(problem), lambda J: {name: block.flatten(0, 1) for name, block in J.items()})


def _kernel(problem: Problem) -> Task:
    rows = _output_rows(problem)

    def run() -> Tensor:
        products = per_sample.gram({name: block.flatten(0, 1) for name, block in rows().items()})
        outputs = (len(problem.inputs), len(products) // len(problem.inputs))
        return products.reshape(*outputs, *outputs)

    return Task(run)


def _output(problem: Problem) -> Callable[[Params], Tensor]:
    return lambda params: functional_call(problem.model, params, (problem.inputs,))


def _gradient(problem: Problem) -> Callable[[Params], Params]:
    output = _output(problem)
    return grad(lambda params: problem.loss(output(params), problem.targets))


def _hvp_first(problem: Problem) -> Task:
    gradient, params, v = _gradient(problem), _params(problem), problem.vector
    return Task(lambda: jvp(gradient, (params,), (v,))[1])


def _hvp_kept(problem: Problem) -> Task:
    _, pull = vjp(_gradient(problem), _params(problem))  # the Hessian is its own transpose
    v = problem.vector
    return Task(lambda: pull(v)[0])


def _hvp_block(problem: Problem) -> Task:
    _, pull = vjp(_gradient(problem), _params(problem))
    return Task(lambda: vmap(pull)(problem.vectors)[0])


def _ggn_product(problem: Problem, params: Params, v: Params, pull: Callable[..., Any] | None) -> Params:
    output = _output(problem)
    y, Jv = jvp(output, (params,), (v,))
    _, HJv = jvp(grad(lambda y: problem.loss(y, problem.targets)), (y,), (Jv,))
    pull = pull or vjp(output, params)[1]
    return pull(HJv)[0]


def _ggn_first(problem: Problem) -> Task:
    params, v = _params(problem), problem.vector
    return Task(lambda: _ggn_product(problem, params, v, None))


def _ggn_kept(problem: Problem) -> Task:
    params, v = _params(problem), problem.vector
    _, pull = vjp(_output(problem), params)
    return Task(lambda: _ggn_product(problem, params, v, pull))


def _ggn_block(problem: Problem) -> Task:
    params = _params(problem)
    _, pull = vjp(_output(problem), params)
    return Task(lambda: vmap(lambda v: _ggn_product(problem, params, v, pull))(problem.vectors))


def _ggn_diagonal(problem: Problem) -> Task:
    """Rows are columns of ``diag(sqrt p) - p sqrt(p)'``, a root of the softmax's curvature, pulled back."""

    def squares(params: Params, x: Tensor) -> Params:
        y, pull = vjp(lambda params: functional_call(problem.model, params, (x[None],))[0], params)
        p = softmax(y, -1)
        (rows,) = vmap(pull)(diag(p.sqrt()) - outer(p.sqrt(), p))
        return {name: block.square().sum(0) for name, block in rows.items()}

    count = len(problem.inputs)  # rows of so many samples at once as to have about the memory of per-sample gradients
    by_sample = vmap(squares, in_dims=(None, 0), chunk_size=max(1, count // CLASSES))
    params = _params(problem)
    return Task(lambda: {n: block.sum(0) / count for n, block in by_sample(params, problem.inputs).items()})


def _ggn_diagonal_sampled(problem: Problem) -> Task:
    """Squares of per-sample gradients at labels that the model draws."""

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return sum_loss(functional_call(problem.model, params, (x[None],)), y[None])

    def run() -> Params:
        labels = multinomial(softmax(problem.model(problem.inputs).detach(), -1), 1)[:, 0]
        sums = per_sample.squares(gradients(params, problem.inputs, labels))
        return {name: block / len(labels) for name, block in sums.items()}

    sum_loss = problem.sum_loss
    gradients, params = vmap(grad(loss), in_dims=(None, 0, 0)), _params(problem)
    return Task(run)


def _jacobian(small: SmallFunctions) -> Task:
    jacobian = jacrev(small.f)
    return Task(lambda: jacobian(small.x))


def _hessian(small: SmallFunctions) -> Task:
    second = hessian(small.g)
    return Task(lambda: second(small.x))


TASKS: dict[str, Callable[[Any], Task]] = {
    "dense": _from_rows(lambda rows: rows),
    "norms": _from_rows(per_sample.norms),
    "squares": _from_rows(per_sample.squares),
    "gram": _from_rows(per_sample.gram),
    "clipped_sum": _clipped_sum,
    "output_jacobian": _output_jacobian,
    "kernel": _kernel,
    "hvp_first": _hvp_first,
    "hvp_kept": _hvp_kept,
    "hvp_block": _hvp_block,
    "ggn_first": _ggn_first,
    "ggn_kept": _ggn_kept,
    "ggn_block": _ggn_block,
    "ggn_diagonal": _ggn_diagonal,
    "ggn_diagonal_sampled": _ggn_diagonal_sampled,
    "jacobian": _jacobian,
    "hessian": _hessian,
}
