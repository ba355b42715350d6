"""What is right: every quantity once, by plain loops over `torch.autograd.grad` in float64."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from benchmarks import curvature_reference
from benchmarks.models import BLOCK, Problem, SmallFunctions
from benchmarks.quantities import DIAGONALS, FIRST, MAX_NORM, PER_SAMPLE, SAMPLED


def rows(problem: Problem) -> dict[str, Tensor]:
    """Gradients of the unreduced losses, one sample at a time: name -> [N, *shape]."""
    per_sample = []
    for n in range(len(problem.inputs)):
        loss = problem.sum_loss(problem.model(problem.inputs[n : n + 1]), problem.targets[n : n + 1])
        per_sample.append(torch.autograd.grad(loss, list(problem.model.parameters())))
    return dict(zip(problem.params, map(torch.stack, zip(*per_sample, strict=True)), strict=True))


def gram(rows: Mapping[str, Tensor]) -> Tensor:
    """[N, N] of inner products between samples."""
    return torch.stack([block.flatten(1) @ block.flatten(1).T for block in rows.values()]).sum(0)


def norms(rows: Mapping[str, Tensor]) -> Tensor:
    """[N] of norms over all parameters."""
    return torch.stack([block.flatten(1).square().sum(1) for block in rows.values()]).sum(0).sqrt()


def clipped_sum(rows: Mapping[str, Tensor], max_norm: Tensor) -> dict[str, Tensor]:
    """The sum over samples of gradients scaled down to at most `max_norm`: name -> [*shape]."""
    factors = (max_norm / norms(rows)).clamp(max=1.0)
    return {name: torch.tensordot(factors, block, 1) for name, block in rows.items()}


def output_rows(problem: Problem) -> dict[str, Tensor]:
    """Gradients of all outputs, one element at a time: name -> [N * C, *shape]."""
    rows = []
    for output in problem.model(problem.inputs).flatten():
        rows.append(torch.autograd.grad(output, list(problem.model.parameters()), retain_graph=True))
    return dict(zip(problem.params, map(torch.stack, zip(*rows, strict=True)), strict=True))


def kernel(problem: Problem) -> Tensor:
    """[N, C, N, C] of inner products between the gradients of all outputs."""
    products = gram(output_rows(problem))
    outputs = (len(problem.inputs), len(products) // len(problem.inputs))
    return products.reshape(*outputs, *outputs)


def hessian_product(problem: Problem, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hessian of the mean loss times each vector: the gradient differentiated again, one by one."""
    params = list(problem.model.parameters())
    gradient = torch.autograd.grad(problem.loss(problem.model(problem.inputs), problem.targets), params, create_graph=True)
    products = []
    for columns in zip(*vectors.values(), strict=True):
        inner = sum((g * v).sum() for g, v in zip(gradient, columns, strict=True))
        products.append(torch.autograd.grad(inner, params, retain_graph=True))
    return dict(zip(vectors, map(torch.stack, zip(*products, strict=True)), strict=True))


def ggn_product(problem: Problem, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gauss-Newton matrix of the mean cross entropy times each vector: ``1/N sum_n J' (diag p - p p') J v``.

    ``J v`` is the derivative of ``u' J`` with respect to u; the middle factor is the softmax's closed form.
    """
    params = list(problem.model.parameters())
    output = problem.model(problem.inputs)
    p = torch.softmax(output, -1).detach()
    u = torch.zeros_like(output, requires_grad=True)
    pulled = torch.autograd.grad(output, params, u, create_graph=True)
    products = []
    for columns in zip(*vectors.values(), strict=True):
        (Jv,) = torch.autograd.grad(pulled, u, columns, retain_graph=True)
        HJv = (p * Jv - p * (p * Jv).sum(-1, keepdim=True)) / len(output)
        products.append(torch.autograd.grad(output, params, HJv, retain_graph=True))
    return dict(zip(vectors, map(torch.stack, zip(*products, strict=True)), strict=True))


def jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """[m, n], one output at a time."""
    x = x.detach().requires_grad_()
    return torch.stack([torch.autograd.grad(y, x, retain_graph=True)[0] for y in f(x)])


def hessian(g: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """[n, n], one entry of the gradient at a time."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(g(x), x, create_graph=True)
    return torch.stack([torch.autograd.grad(entry, x, retain_graph=True)[0] for entry in gradient])


def references(problem: Problem | SmallFunctions, quantities: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """quantity -> blocks, for those asked for (per-sample gradients rounded to float32, to save space).

    With a clipped sum comes, as `MAX_NORM`, the norm to which it was clipped: the median, so that half are.
    """
    double = problem.double()
    if isinstance(double, SmallFunctions):
        return {"jacobian": {"": jacobian(double.f, double.x)}, "hessian": {"": hessian(double.g, double.x)}}
    found = _per_sample(double) if not PER_SAMPLE.keys().isdisjoint(quantities) else {}
    if "output_jacobian" in quantities:
        found["output_jacobian"] = output_rows(double)
    if "kernel" in quantities:
        found["kernel"] = {"": kernel(double.head(FIRST["kernel"]))}
    for prefix, product in (("hvp", hessian_product), ("ggn", ggn_product)):
        count = BLOCK if f"{prefix}_block" in quantities else 1
        if any(name.startswith(prefix) for name in quantities):
            products = product(double, {name: block[:count] for name, block in double.vectors.items()})
            first = {name: block[0] for name, block in products.items()}
            found |= {f"{prefix}_first": first, f"{prefix}_kept": first, f"{prefix}_block": products}
    if not {*DIAGONALS, *SAMPLED}.isdisjoint(quantities):
        found |= curvature_reference.references(double, quantities)
    kept = [*quantities, *([MAX_NORM] if "clipped_sum" in quantities else [])]
    return {quantity: found[quantity] for quantity in kept}


def _per_sample(problem: Problem) -> dict[str, dict[str, Tensor]]:
    J = rows(problem)
    median = norms(J).median()
    dense = {name: block.float() for name, block in J.items()}
    return {
        "dense": dense,
        "dense_out": dense,
        "norms": {"": norms(J)},
        "squares": {name: block.square().sum(0) for name, block in J.items()},
        "gram": {"": gram(J)},
        "clipped_sum": clipped_sum(J, median),
        MAX_NORM: {"": median},
    }
