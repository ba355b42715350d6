"""`fisher_information`: what data tell about the parameters of a log-likelihood."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.autodiff.recording import Function, inside_functorch
from hesse.autodiff.together import call_together
from hesse.core import random, tree
from hesse.core.batching import slices
from hesse.core.errors import HolomorphyError, NonScalarError, StructureError
from hesse.core.memory import Budget
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.derivatives.hessian import hessian
from hesse.derivatives.information_result import Information, InformationWarning
from hesse.derivatives.jacobian import jacobian, one_of

_ASKED = "fisher_information(log_likelihood, theta) differentiates a log-likelihood by its parameters."

_AT_ONCE = 64

Kind = Literal["observed", "expected", "empirical"]


def fisher_information(
    log_likelihood: Callable[..., Tensor],
    theta: Tree,
    kind: Kind = "observed",
    *,
    sample: Callable[[Tree, torch.Generator], Any] | None = None,
    samples: int = 1000,
    estimator: Literal["hessian", "score"] = "hessian",
    generator: torch.Generator | None = None,
    memory: Budget | None = None,
) -> Information:
    """The Fisher information of the parameters of a log-likelihood, with names and standard errors.

    Args:
        log_likelihood: ``log_likelihood(theta)``, a number, or one an independent observation, ``[n]`` (which
            kind="empirical" needs); with kind="expected" ``log_likelihood(theta, data)``.
        theta: the point: a tensor, a Python float, or any tree of them; for standard errors the maximum of the likelihood.
        kind: "observed": the negative Hessian at the data in `log_likelihood`. "expected": the mean over data drawn from the
            model. "empirical": the sum of outer products of the observations' scores (gradients), which agrees with the others
            only at the truth and for many observations (Efron, Hinkley 1978; Kunstner, Hennig, Balles 2019).
        sample: for kind="expected", ``sample(theta, generator)`` draws a data set of the size whose information is wanted. What
            it returns is held constant, also where it was computed from theta (``rsample``).
        samples: number of data sets to draw.
        estimator: for kind="expected", what is averaged: "hessian", the observed information (free of Monte Carlo error for
            exponential families in canonical parameters), or "score", outer products of scores, by observation for ``[n]``.
        generator: where data are drawn from; without one, the same data each time.
        memory: budget in bytes, a fraction of what is free, or text ("2GiB").

    Returns:
        An `Information`; its matrix is differentiable with respect to whatever upstream requires grad.

    Raises:
        NonScalarError: the log-likelihood has another shape, or kind="empirical" without one value an observation.
        StructureError: an unknown kind; `sample` missing, or given for another kind. Others as `hessian`.

    Warns:
        InformationWarning: the matrix is ill-conditioned or not positive definite, with the parameters in that direction.

    Cost: observed: one gradient and d Hessian products. Empirical: min(n, d) passes. Expected: `samples` times
    that; data sets share passes where `torch.func.vmap` can batch the log-likelihood.
    """
    one_of("kind", kind, ("observed", "expected", "empirical"))
    one_of("estimator", estimator, ("hessian", "score"))
    if (sample is not None) != (kind == "expected"):
        raise StructureError(
            "kind='expected' draws data by sample=(theta, generator) -> data; the other kinds take the data as they are.",
            f"kind={kind!r} {'with' if sample is not None else 'without'} sample",
            "pass kind='expected' together with sample=... and log_likelihood(theta, data)",
        )
    if sample is None:
        matrix, error = _one(log_likelihood, theta, kind == "observed", memory, by_observation=kind == "empirical"), None
    else:
        draws = _draws(sample, theta, samples, generator)
        matrix, error = _expected(log_likelihood, theta, estimator == "hessian", draws, memory)
    result = Information(kind, matrix, theta, Space.of(theta), error)
    if not inside_functorch() and (problem := result.problem()):
        warnings.warn(InformationWarning(f"The {kind} information is {problem}."), stacklevel=2)
    return result


def _one(
    log_likelihood: Function, theta: Tree, use_hessian: bool, memory: Budget | None, *, by_observation: bool = False
) -> Tensor:
    """``[d, d]`` of one data set: the negative Hessian, or the sum of the scores' outer products."""

    def values(point: Tree) -> Tensor:
        return _values(log_likelihood(point), by_observation)

    if use_hessian:
        table = hessian(lambda point: values(point).sum(), theta, memory=memory).hessian
        leaves = [leaf if isinstance(leaf, Tensor) else torch.as_tensor(leaf) for leaf in tree.leaves(theta)]
        blocks = iter(tree.leaves(table))
        rows = [torch.cat([next(blocks).reshape(a.numel(), b.numel()) for b in leaves], 1) for a in leaves]
        matrix = -torch.cat(rows)
        return (matrix + matrix.mT) / 2
    parts = tree.leaves(jacobian(values, theta, memory=memory).jacobian)
    scores = torch.cat([part.reshape(part.shape[0], -1) for part in parts], 1)
    if scores.is_complex():
        raise HolomorphyError(_ASKED, "complex numbers", "pass real and imaginary parts (torch.view_as_real) as real inputs")
    return scores.mT @ scores


def _values(found: Any, by_observation: bool) -> Tensor:
    if not isinstance(found, Tensor):
        raise StructureError(_ASKED, f"log_likelihood returned {type(found).__name__}", "return a 0-d tensor, not .item()")
    if found.ndim == 0 and by_observation:
        remedy = "return one value an observation, [n], whose scores kind='empirical' adds up"
        raise NonScalarError(_ASKED, "log_likelihood returned a number for all observations together", remedy)
    if found.ndim and found.numel() != found.shape[0]:
        remedy = "return a number, or one value an observation, [n]"
        raise NonScalarError(_ASKED, f"log_likelihood returned shape {tuple(found.shape)}", remedy)
    return found.reshape(-1)


def _draws(
    sample: Callable[[Tree, torch.Generator], Any], theta: Tree, samples: int, generator: torch.Generator | None
) -> Iterator[list[Any]]:
    """Drawn data sets, a block at a time, held constant."""
    if samples < 2:
        raise StructureError("samples is the number of data sets to draw.", repr(samples), "pass at least 2")
    source = random.make_generator() if generator is None else generator
    for part in slices(samples, _AT_ONCE, "expected information"):
        with torch.no_grad():
            block = [_constant(sample(_constant(theta), source)) for _ in range(part.stop - part.start)]
        yield block


def _constant(values: Tree) -> Tree:
    return tree.map_tree(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, values)


def _expected(
    log_likelihood: Callable[..., Tensor], theta: Tree, use_hessian: bool, draws: Iterator[list[Any]], memory: Budget | None
) -> tuple[Tensor, Tensor]:
    """The mean over data sets, and one standard deviation of it (Chan's update of mean and spread, in blocks)."""

    def one(data: Any) -> Tensor:
        return _one(lambda point: log_likelihood(point, data), theta, use_hessian, memory)

    mean, spread, taken = torch.zeros(()), torch.zeros(()), 0
    for block in draws:
        found, count = torch.stack(call_together(one, block)), len(block)
        center = found.mean(0)
        shift = center - mean
        spread = spread + ((found - center) ** 2).sum(0).detach()
        spread = spread + (shift**2).detach() * (taken * count / (taken + count))
        mean, taken = mean + shift * (count / (taken + count)), taken + count
    return mean, (spread / (taken - 1) / taken).sqrt()
