"""`parameter_jacobian`: the derivative of every sample's loss (or output) by every parameter, as a structured operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from hesse.autodiff.model import Selection, as_model, is_one_batch
from hesse.autodiff.roots import Asked, Loss, Outputs, capture_rows
from hesse.core.errors import StructureError
from hesse.core.memory import Budget, given_budget
from hesse.parameters.appetite import PAIR, PEAK, WHOLE, is_small, measured
from hesse.parameters.base import JacobianBySample
from hesse.parameters.batches import cut
from hesse.parameters.data_jacobian import DataJacobian
from hesse.parameters.jacobian import ParameterJacobian
from hesse.parameters.recipe import Recipe, own_outputs

_TEXT = "parameter_jacobian(model, loss, data) differentiates every sample by every parameter."


def parameter_jacobian(  # noqa: PLR0913 - what to differentiate, how, and within which memory
    model: Any,
    loss: Loss,
    data: Any,
    *,
    params: Selection = None,
    output: Callable[[Any], Tensor] | None = None,
    outputs: Outputs = None,
    records: Literal["kept", "streamed"] = "kept",
    create_graph: bool = False,
    memory: Budget | None = None,
) -> JacobianBySample:
    """The Jacobian of every sample's loss by the parameters (per-sample gradients), or of the outputs if `loss` is None.

    Args:
        model: an `nn.Module`, or ``(f, params)`` with ``f(params, *inputs)``. Tied, re-used, frozen and unused parameters,
            functional calls, weights that are functions of parameters, and any control flow are covered.
        loss: ``loss(output, target)``, or None for the output Jacobian. For a loss that hesse knows, row n is the gradient of
            sample n's unreduced contribution (class weights kept, ignored positions 0) and `mass` is its normalizer. For any
            other callable, row n is the gradient of ``loss(output[n:n+1], target[n:n+1])``; that the batch loss is their sum
            or mean is checked.
        data: a batch ``(inputs, targets)``; inputs: a tensor, a tuple of positional or a dict of keyword inputs. The first
            axis of every tensor is the batch. Or an iterable of batches that gives the same ones, in the same order, in every
            pass (a list of them, a `DataLoader` that does not shuffle).
        params: names of the parameters to differentiate by, or a predicate ``(name, tensor) -> bool``.
        output: picks the tensor out of what the model returns.
        outputs: without a loss: which elements of a sample's (flattened) output to differentiate. An int (rows ``[N]``), a
            list of k ints (rows ``[N, k]``), or an integer tensor ``[N]`` or ``[N, k]`` with each sample's own; default all.
        records: what happens to a layer's record, its input and its output's cotangent. "kept": one backward pass serves all
            quantities. "streamed": every quantity runs a backward pass of its own, in which each record is contracted and
            freed as the pass leaves the layer: less memory, for one quantity no more time.
        create_graph: whether results are differentiable by the model's own parameters (a penalty on the norms trains). Fused
            attention and recurrent kernels give way to plain ops then.
        memory: budget in bytes, as a fraction of what is free, or as text ("2GiB"). A batch whose records would not fit is
            taken in parts, as a data set is.

    Returns:
        A `ParameterJacobian` of one batch, a `DataJacobian` of an iterable (or of a batch in parts): ``[N, D]``, or
        ``[N, C, D]`` for outputs ``[N, C]``; an operator with `norms`, `gram`, `sum_of_squares`, `clipped_sum`, `dense` and
        more.

    Raises:
        MixedSamplesError: samples influence each other (batch normalization in train mode, a loss that is neither sum nor
        mean of its samples). DetachedError: the graph was cut, with the line. DataError, DeviceError, NonFiniteError,
        StructureError, UnsupportedError: as the names say.

    Cost: one forward pass and one backward pass without weight gradients (for outputs: C of these); quantities then cost less
    than one gradient each. The first call for a model and a shape adds about one gradient of a few samples. Of a data set the
    call reads the data once and captures eight samples; every quantity is a pass with one capture of each batch.
    """
    _require_options(loss, outputs, records, create_graph)
    asked = Asked(_TEXT, own_outputs(outputs), records == "kept", create_graph)
    recipe = Recipe(as_model(model, params=params, output=output), loss, asked)
    if not isinstance(data, (Tensor, dict)) and not is_one_batch(data):
        if create_graph:
            raise StructureError(_TEXT, "create_graph=True with a data set", "make the Jacobian of one batch")
        return DataJacobian(recipe, data, memory)
    if not create_graph and _is_too_large(recipe, data, memory):
        return DataJacobian(recipe, [data], memory)
    return ParameterJacobian.of(capture_rows(recipe.model, loss, data, recipe.asked), recipe.model.params, memory, recipe, data)


def _require_options(loss: Loss, outputs: Outputs, records: str, create_graph: bool) -> None:
    if records not in ("kept", "streamed") or (records == "streamed" and create_graph):
        raise StructureError(
            "records= is 'kept' or 'streamed'; differentiable results need kept ones.",
            f"records={records!r}, create_graph={create_graph}",
            "pass records='kept'",
        )
    if loss is not None and outputs is not None:
        raise StructureError(
            "outputs= chooses rows of an output Jacobian.", "outputs= with a loss", "pass loss=None, or leave outputs= away"
        )


def _is_too_large(recipe: Recipe, batch: Any, memory: Budget | None) -> bool:
    """Whether the capture of a batch does not fit into a budget that somebody has set, as a few samples show."""
    given = given_budget(memory, recipe.model.device)
    count = 0 if given is None else recipe.count(batch)
    if given is None or count <= PAIR:
        return False
    samples = recipe.read(batch)

    def of_the_first(number: int) -> ParameterJacobian:
        few = slice(0, number)
        part = recipe.of_samples(few)
        rows = capture_rows(part.model, part.loss, cut(samples, few), replace(part.asked, keep=True))
        return ParameterJacobian.of(rows, part.model.params)

    if is_small(of_the_first(PAIR).bytes_per_sample * PEAK, count, given):
        return False
    return measured(of_the_first, count, given, recipe.model.device, "the Jacobian").of(count) > WHOLE * given
