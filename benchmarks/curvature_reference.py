"""What diagonals and Kronecker factors are right: `torch.autograd.grad` in plain loops in float64, one output at a time.

The loss is the mean cross entropy. The curvature of a sample's loss by its output is ``diag(p) - p p'``, and the
columns of ``diag(sqrt p) - p sqrt(p)'`` are a root of it: the Gauss-Newton matrix is the mean over samples of
``R' R``, where the rows of R are gradients of the outputs times such a column.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from benchmarks.libraries.kronecker import INPUTS, MATRIX, OUTPUTS
from benchmarks.models import Problem

Pair = tuple[Tensor, Tensor, bool]
SMALL_WEIGHT = 256  # a weight of at most so many numbers has its whole matrix beside its factors


def root(output: Tensor) -> Tensor:
    """[N, C] -> [N, C, C]: the columns (last axis) of a root of the cross entropy's curvature by its output."""
    p = torch.softmax(output, -1).detach()
    return torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None]


def ggn_diagonal(problem: Problem) -> dict[str, Tensor]:
    """Of the mean loss: name -> [*shape]."""
    return second_moments(problem)[0]


def second_moments(
    problem: Problem, whole: Collection[str] = (), inputs: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Second moments of the rows of R by parameter, one sample and one column of the root at a time.

    Args:
        problem: a model with a mean cross entropy.
        whole: parameters whose whole block of the Gauss-Newton matrix is wanted.
        inputs: weights ``[out, ...]`` of which the block's partial trace over the outputs is wanted.

    Returns:
        The diagonal, [*shape]; blocks, [size, size]; partial traces, [in, in].
    """
    params, count = problem.params, len(problem.inputs)
    sums: tuple[dict[str, Tensor], ...] = ({}, {}, {})
    for n in range(count):
        output = problem.model(problem.inputs[n : n + 1])
        for column in root(output)[0].T:
            row = torch.autograd.grad(output, list(params.values()), column[None], retain_graph=True)
            for name, block in zip(params, row, strict=True):
                _add(sums[0], name, block.square())
                if name in whole:
                    _add(sums[1], name, torch.outer(block.flatten(), block.flatten()))
                if name in inputs:
                    _add(sums[2], name, block.flatten(1).T @ block.flatten(1))
    diagonal, blocks, traces = ({name: total / count for name, total in kind.items()} for kind in sums)
    return diagonal, blocks, traces


def _add(sums: dict[str, Tensor], name: str, term: Tensor) -> None:
    if name in sums:
        sums[name] += term
    else:
        sums[name] = term


def hessian_diagonal(problem: Problem) -> dict[str, Tensor]:
    """Of the mean loss, every entry of its gradient differentiated again: name -> [*shape]."""
    params = problem.params
    loss = problem.loss(problem.model(problem.inputs), problem.targets)
    gradient = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    found = {}
    for (name, param), block in zip(params.items(), gradient, strict=True):
        rows = [torch.autograd.grad(entry, param, retain_graph=True, materialize_grads=True)[0] for entry in block.flatten()]
        found[name] = torch.stack([row.flatten()[k] for k, row in enumerate(rows)]).reshape(param.shape)
    return found


def is_piecewise_linear(problem: Problem) -> bool:
    """Whether the Hessian of the loss has the diagonal of the Gauss-Newton matrix.

    A network of dense layers, convolutions, ReLU and maxima, one after another, is linear in each single parameter
    almost everywhere, so that the term with the network's second derivative has no diagonal.
    """
    layers = (nn.Sequential, nn.Linear, nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten)
    return isinstance(problem.loss, nn.CrossEntropyLoss) and all(isinstance(m, layers) for m in problem.model.modules())


def kfac(pairs: Mapping[str, Pair], count: int) -> dict[str, Tensor]:
    """The expectation of sampled KFAC factors ("expand") of the mean loss, in the form of `libraries.kronecker`.

    Of a weight with inputs z and gradients g by its outputs, at n samples and t positions each, it is
    ``sum g g' (x) sum z z' / (n t)``, divided by n for the mean. The bias of a layer with positions is left out: some
    libraries take its positions as samples, others add them up.
    """
    found = {}
    for name, (z, g, has_bias) in pairs.items():
        A, G = z.T @ z, torch.einsum("cki,ckj->ij", g, g)
        found[f"{name}.weight{INPUTS}"] = A / A.trace()
        found[f"{name}.weight{OUTPUTS}"] = G * A.trace() / (len(z) * count)
        if has_bias and len(z) == count:
            found[f"{name}.bias{OUTPUTS}"] = G / count
    return found


def ekfac(pairs: Mapping[str, Pair], count: int, traces: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is known in expectation of sampled EKFAC of the mean loss, in the form of `libraries.kronecker`.

    Its block's partial trace over the outputs is that of the Gauss-Newton matrix, of which only the diagonal in the
    basis of the eigenvectors of ``sum z z'`` is kept. That over the inputs is known for layers with one position a
    sample, where a row is ``g z'``: ``sum |z|^2 g g'``, approximately, since its eigenvectors are those of what was
    drawn.

    Args:
        pairs: of the layers.
        count: samples.
        traces: partial traces over the outputs, of the weights of layers with positions.
    """
    found = {}
    for name, (z, g, _) in pairs.items():
        weight = f"{name}.weight"
        Q = torch.linalg.eigh(z.T @ z).eigenvectors
        if weight in traces:
            kept = (Q * (traces[weight] @ Q)).sum(0)
        else:
            kept = g.square().sum((0, 2)) @ (z @ Q).square() / count
            found[weight + OUTPUTS] = torch.einsum("k,cki,ckj->ij", z.square().sum(1), g, g) / count
        found[weight + INPUTS] = (Q * kept) @ Q.T
    return found


def layer_pairs(problem: Problem) -> dict[str, Pair]:
    """Layer -> inputs [n t, in] and, for every column of the root, gradients by the outputs [C, n t, out]; with bias?"""
    layers = {name: m for name, m in problem.model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0].detach(), output)}))
        for name, layer in layers.items()
    ]
    output = problem.model(problem.inputs)
    for hook in hooks:
        hook.remove()
    outputs = [seen[name][1] for name in layers]
    columns = root(output).unbind(-1)
    gradients = [torch.autograd.grad(output, outputs, column, retain_graph=True) for column in columns]
    found = {}
    for name, layer, *by_column in zip(layers, layers.values(), *gradients, strict=True):
        z, g = seen[name][0], torch.stack(by_column)
        if isinstance(layer, nn.Conv2d):
            z = unfold(z, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)
            g = g.movedim(2, -1)
        found[name] = (z.flatten(0, -2), g.flatten(1, -2), layer.bias is not None)
    return found


def references(problem: Problem, quantities: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """quantity -> blocks, for those of this file that are asked for, and others that come with them."""
    if "hessian_diagonal" in quantities and not is_piecewise_linear(problem):
        return {"hessian_diagonal": hessian_diagonal(problem)}
    pairs = {} if {"kfac", "ekfac"}.isdisjoint(quantities) else layer_pairs(problem)
    count, params = len(problem.inputs), problem.params
    small = [f"{name}.weight" for name in pairs if params[f"{name}.weight"].numel() <= SMALL_WEIGHT]
    shared = [f"{name}.weight" for name, (z, _, _) in pairs.items() if len(z) != count]
    diagonal, blocks, traces = second_moments(problem, small, shared)
    whole = {name + MATRIX: block for name, block in blocks.items()}
    totals = {name: block.sum() for name, block in diagonal.items()}
    found = dict.fromkeys(("ggn_diagonal", "ggn_diagonal_sampled", "hessian_diagonal"), diagonal)
    return found | {"kfac": kfac(pairs, count) | whole, "ekfac": ekfac(pairs, count, traces) | totals | whole}
