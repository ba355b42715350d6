"""A model run on one batch, linearized: products with its Jacobian and rows of its output from one run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.determinism import deterministic
from hesse.autodiff.forward import Forward, run_forward
from hesse.autodiff.fused import FUSED_RECURRENCES
from hesse.autodiff.linearize import JacobianOperator, linearize_again, require_connected
from hesse.autodiff.model import Model
from hesse.autodiff.plain_bags import FUSED_BAGS
from hesse.autodiff.recording import Recording, has_foreign_leaf, inside_functorch, node_bytes, nodes, output_leaves
from hesse.autodiff.weight_norm import FUSED_WEIGHT_NORM
from hesse.core import tree
from hesse.core.errors import UnsupportedError
from hesse.core.space import Space

_FUSED = FUSED_BAGS | FUSED_RECURRENCES | FUSED_WEIGHT_NORM


class ModelRun:
    """A model on one batch: what it returned, its Jacobian, and the run whose graph gives rows.

    One run serves both, unless it passed through a fused kernel, whose graph can be differentiated once only: then the Jacobian
    runs the model again (through plain ops) when it is first asked for.

    Args:
        model: the model; it must not draw random numbers.
        inputs: what to run it on.
        count: the number of samples.
        asked: what for, in error messages.

    Raises:
        UnsupportedError: inside `torch.inference_mode`. DetachedError: the output does not depend on the parameters.

    Attributes:
        space: that of the parameters.
        value: what the model returned, detached.
        forward: the run; None for outputs that are no tensors, and inside `torch.func` transforms.
    """

    def __init__(self, model: Model, inputs: Any, count: int, asked: str) -> None:
        self.model, self.inputs, self.asked = model, inputs, asked
        self.space = Space.of(model.params)
        self.forward: Forward | None = None
        self._first: JacobianOperator | None = None
        if torch.is_inference_mode_enabled():
            raise UnsupportedError(
                asked, "torch.inference_mode is on, in which nothing can be differentiated", "use torch.no_grad"
            )
        with deterministic(model, asked):
            if inside_functorch() or any(leaf.is_inference() for leaf in tree.leaves(model.params)):
                self.value, self._first = self._linearized()
                return
            run = run_forward(model, inputs, count, asked, any_output=True)
            recording = self._recording(run)
            if recording is None:
                self.value = _detached(run.output)
            else:
                require_connected(recording, asked)
                self.value, self._first = recording.value, JacobianOperator(recording, model.key)
            self.forward = run if isinstance(run.output, Tensor) else None

    def _linearized(self) -> tuple[Any, JacobianOperator]:
        value, jacobian = linearize_again(_call(self.model, self.inputs), self.model.params, self.model.key)
        assert isinstance(jacobian, JacobianOperator)
        return value, jacobian

    def _recording(self, run: Forward) -> Recording | None:
        outputs, out_space = output_leaves(run.output, self.asked)
        names = {node.name() for node in nodes([y.grad_fn for y in outputs if y.grad_fn is not None])}
        if "CheckpointFunctionBackward" in names:
            self._linearized()  # which refuses it
        if names & _FUSED or any(name.startswith("ScaledDotProduct") for name in names):
            return None
        inputs = list(run.leaves.values())
        attached = torch.is_grad_enabled() and has_foreign_leaf(outputs, inputs)
        value = run.output
        if not attached:
            value = _detached(value)
        point = self.space.rebuild(inputs)
        f = _call(self.model, self.inputs)
        return Recording(f, point, inputs, outputs, value, self.space, out_space, attached, functorch=False)

    @property
    def reads(self) -> tuple[Tensor, ...]:
        """The parameters, which the graph reads, frozen ones included."""
        return self.model.reads

    @cached_property
    def held_bytes(self) -> int:
        """Bytes of what the graph's ops produced, a bound on what it holds."""
        outputs, _ = output_leaves(self.forward.output, self.asked) if self.forward is not None else ([], None)
        return sum(node_bytes(node) for node in nodes([y.grad_fn for y in outputs if y.grad_fn is not None]))

    @cached_property
    def jacobian(self) -> JacobianOperator:
        """The derivative of the output by the parameters.

        Cost: nothing, or a forward pass if the run went through a fused kernel.
        """
        if self._first is not None:
            return self._first
        with deterministic(self.model, self.asked):
            return self._linearized()[1]


def _call(model: Model, inputs: Any) -> Callable[[Any], Any]:
    """The model as a function of its parameters; knows nothing of the run, which would hold its graph in a reference cycle."""
    return lambda params: model.call(params, inputs)


def _detached(value: Any) -> Any:
    return tree.map_tree(lambda y: y.detach() if isinstance(y, Tensor) else y, value)
