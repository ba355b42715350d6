"""How the Jacobian of a batch is made: the model, the loss, and which rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from hesse.autodiff.linearize import linearize_again
from hesse.autodiff.model import Model, check_inputs, sample_count, split_batch
from hesse.autodiff.roots import Asked, Loss, Outputs
from hesse.core import tree
from hesse.core.errors import StructureError
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator


def own_outputs(outputs: Outputs) -> Outputs:
    """A copy of a choice of outputs, which stays as it is when the user's is written to."""
    if isinstance(outputs, Tensor):
        return outputs.detach().clone()
    return list(outputs) if isinstance(outputs, Sequence) and not isinstance(outputs, (str, tuple)) else outputs


@dataclass(frozen=True, eq=False)
class Recipe:
    """How the Jacobian of a batch is made.

    Attributes:
        model: the model, with the parameters to differentiate by.
        loss: the loss, or None for the derivatives of the outputs.
        asked: which rows, and how they are captured.
    """

    model: Model
    loss: Loss
    asked: Asked

    def read(self, batch: Any) -> tuple[Any, Any]:
        """``(inputs, targets)`` of a batch; the targets are None if there is no loss to read them."""
        inputs, targets = split_batch(batch, self.asked.text, target_needed=self.loss is not None)
        return inputs, None if self.loss is None else targets

    def count(self, batch: Any) -> int:
        """The number of samples of a batch, whose inputs are checked."""
        inputs, targets = self.read(batch)
        count = sample_count(inputs, targets, self.asked.text)
        check_inputs(self.model, inputs, self.asked.text)
        return count

    def of_samples(self, part: slice) -> Recipe:
        """The same for some samples, whose choice of outputs may be their own."""
        outputs = self.asked.outputs
        if not isinstance(outputs, Tensor) or outputs.ndim == 0:
            return self
        return replace(self, asked=replace(self.asked, outputs=outputs[part]))

    def require_choices(self, count: int) -> None:
        """Refuse a choice of outputs for another number of samples.

        Raises:
            StructureError: there are more or fewer choices than samples.
        """
        outputs = self.asked.outputs
        if isinstance(outputs, Tensor) and outputs.ndim and len(outputs) != count:
            raise StructureError(
                "outputs= takes a choice for each sample of the data.",
                f"{len(outputs)} choices for {count} samples",
                "pass an integer tensor [N] or [N, k] for all batches together",
            )

    @property
    def is_linear(self) -> bool:
        """Whether `linear` gives the rows: those of outputs that are the same ones of every sample."""
        return self.loss is None and not (isinstance(self.asked.outputs, Tensor) and self.asked.outputs.ndim)

    def function(self, inputs: Any, count: int) -> Callable[[Tree], Tensor]:
        """The chosen outputs of the model as a function of its parameters."""
        outputs = self.asked.outputs

        def f(params: Tree) -> Tensor:
            value = self.model.call(params, inputs)
            return value if outputs is None else value.reshape(count, -1)[:, outputs]

        return f

    def linear(self, inputs: Any) -> LinearOperator:
        """The derivative of the chosen outputs for products only: no rows are captured."""
        f = self.function(inputs, sample_count(inputs, None, self.asked.text))
        return linearize_again(f, self.model.params, self.model.key).jacobian

    def restricted(self, names: Collection[str]) -> Recipe:
        """The same by some of the parameters only."""
        everything, call = self.model.params, self.model.call
        named = tree.named_leaves(everything)
        if len(names) == len(named):
            return self
        _, structure = tree.flatten(everything)

        def merged(values: Tree, inputs: Any) -> Any:
            return call(structure.unflatten(values.get(name, leaf) for name, leaf in named), inputs)

        chosen = {name: leaf for name, leaf in named if name in names}
        return replace(self, model=replace(self.model, call=merged, params=chosen))
