"""What is right: every quantity once, by plain loops over `torch.autograd.grad` in float64."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from benchmarks.models import BLOCK, Problem, SmallFunctions


def rows(problem: Problem) -> dict[str, Tensor]:
    """Per-sample gradients, one sample at a time: name -> [N, *shape]."""
    per_sample = []
    for n in range(len(problem.inputs)):
        loss = problem.loss(problem.model(problem.inputs[n : n + 1]), problem.targets[n : n + 1])
        per_sample.append(torch.autograd.grad(loss, list(problem.model.parameters())))
    return dict(zip(problem.params, map(torch.stack, zip(*per_sample, strict=True)), strict=True))


def gram(rows: Mapping[str, Tensor]) -> Tensor:
    """[N, N] of inner products between samples."""
    return torch.stack([block.flatten(1) @ block.flatten(1).T for block in rows.values()]).sum(0)


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
    """quantity -> blocks, for those asked for (per-sample gradients rounded to float32, to save space)."""
    double = problem.double()
    if isinstance(double, SmallFunctions):
        return {"jacobian": {"": jacobian(double.f, double.x)}, "hessian": {"": hessian(double.g, double.x)}}
    found = _per_sample(double) if not _PER_SAMPLE.isdisjoint(quantities) else {}
    for prefix, product in (("hvp", hessian_product), ("ggn", ggn_product)):
        count = BLOCK if f"{prefix}_block" in quantities else 1
        if any(name.startswith(prefix) for name in quantities):
            products = product(double, {name: block[:count] for name, block in double.vectors.items()})
            first = {name: block[0] for name, block in products.items()}
            found |= {f"{prefix}_first": first, f"{prefix}_kept": first, f"{prefix}_block": products}
    return {quantity: found[quantity] for quantity in quantities}


_PER_SAMPLE = frozenset({"dense", "dense_out", "norms", "squares", "gram"})


def _per_sample(problem: Problem) -> dict[str, dict[str, Tensor]]:
    J = rows(problem)
    dense = {name: block.float() for name, block in J.items()}
    return {
        "dense": dense,
        "dense_out": dense,
        "norms": {"": torch.stack([b.flatten(1).square().sum(1) for b in J.values()]).sum(0).sqrt()},
        "squares": {name: block.square().sum(0) for name, block in J.items()},
        "gram": {"": gram(J)},
    }
