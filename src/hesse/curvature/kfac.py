"""KFAC: Kronecker-factored approximate curvature (Martens, Grosse 2015), for any model that has a parameter Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.model import Model, Selection, as_model
from hesse.core.memory import Budget
from hesse.core.space import Space
from hesse.curvature.batch import BatchLoss, require_same_question
from hesse.curvature.fisher import Labels
from hesse.curvature.kronecker import KroneckerFactored
from hesse.curvature.kronecker_budget import Attempt, Reading, twice_added
from hesse.curvature.kronecker_pass import How, KfacKind, accumulated, added_up, make_how
from hesse.operators.spread import asked_together
from hesse.parameters.contractions.moments import Approximation

_ASKED = "kfac(model, loss, data) approximates a curvature matrix by Kronecker products, parameter by parameter."
WIDEST = 8192  # numbers of a factor beyond which only its diagonal is kept: 8192 squared float32 numbers are 256 MiB


@asked_together
def kfac(  # noqa: PLR0913 - a model, a loss, data, which matrix, and how it is approximated
    model: Any,
    loss: BatchLoss,
    data: Any,
    *,
    kind: KfacKind = "sampled",
    approximation: Approximation = "expand",
    labels: Labels = "true",
    samples: int = 1,
    generator: torch.Generator | None = None,
    widest: int = WIDEST,
    params: Selection = None,
    output: Callable[[Any], Tensor] | None = None,
    memory: Budget | None = None,
) -> KroneckerFactored:
    """The Kronecker-factored approximation of a Fisher or Gauss-Newton matrix, over one batch or a data set.

    The block of a weight with inputs z and output cotangents g, ``sum_n (g_n zₙᵀ)(...)ᵀ``, is replaced by the product of the
    second moments of g and of z. Which parameters have two factors is found on the autograd graph: linear layers, convolutions
    of all kinds (grouped: a product a group), embeddings (the tokens' counts are the diagonal factor), attention's projections,
    LSTMs, tied weights of one kind. Any other parameter (biases, norm affines, depthwise kernels, weights that are functions of
    parameters) gets its exact matrix up to 2048 numbers, beyond that the exact matrix of each output channel, else its
    diagonal. `kinds` says which.

    By convention every sample and position counts among the inputs, also one whose target is ignored: its cotangent is zero,
    but the product of second moments does not know that the two belong together. Leave out what is ignored altogether.

    Args:
        model, loss, data, params, output: as for `loss_hessian`.
        kind: "sampled", "expected" and "empirical": the Fisher matrix of this name, see `fisher`; "ggn": the Gauss-Newton
            matrix.
        approximation: of weights that are shared over positions (convolutions, sequences): "expand" takes every position as a
            sample of its own, "reduce" adds up positions first (Eschenhagen et al. 2023).
        labels: for "empirical", as for `fisher`.
        samples: for "sampled": cotangents a sample.
        generator: for "sampled": source of the randomness.
        widest: a factor of more numbers is replaced by its diagonal.
        memory: budget in bytes, as a fraction of what is free, or as text ("2GiB"), factors included. A batch that does not fit
            is read in slices, whose growth of memory is measured; of spread data each process keeps to it by itself. Where an
            allocation fails, the pass begins anew with slices half as large.

    Returns:
        A `KroneckerFactored` operator: products, `damped`, `inverse`, `sqrt`, `logdet`, and all questions (`hesse.solve`,
        `hesse.diagonal`, ...). A data set in uneven parts gives the factors of the whole.

    Raises:
        StructureError: another kind or approximation. MemoryBudgetError: the factors and two samples do not fit.
        UnsupportedError, MixedSamplesError and others as `fisher` and `parameter_jacobian`.

    Cost: one pass over the data. "sampled", "empirical": a forward pass, a backward pass without weight gradients a cotangent,
    and for a weight with I inputs and O outputs I² + O² multiplications a position. "expected", "ggn": a backward pass for each
    output. A budget below 1024 times the bytes of batch and parameters adds two passes over about a tenth of a batch, which
    measure what they take.
    """
    how = make_how(loss, (kind, approximation, labels, samples, generator, widest), data, _ASKED)
    resolved = as_model(model, params=params, output=output)
    require_same_question(resolved, loss, data, **vars(how))
    reading = Reading(how, resolved, loss, data, _attempt(resolved, loss), memory)
    own = lambda: reading.passes(lambda: added_up(reading.how, reading.rows()))  # noqa: E731
    return accumulated(own, data, _ASKED).operator(Space.of(resolved.params))


def _attempt(model: Model, loss: BatchLoss) -> Attempt:
    def attempt(how: How, piece: Any) -> int:
        twice_added(how, model, loss, piece).operator(Space.of(model.params))
        return 0

    return attempt
