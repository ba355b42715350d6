"""`AutoCriterion`: a loss module made of a function of an input and a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hesse.core.errors import LeafError, NonScalarError, StructureError
from hesse.nn.persistence import OfFunction, class_named


class CriterionOfFunction(OfFunction):
    """A loss that computes ``fn(input, target)``; `AutoCriterion` names its classes.

    Args:
        fn: the function, of an input and a target (tensors, or trees of them), which returns a 0-d tensor.

    Raises:
        StructureError: `fn` cannot be called.

    Cost: one call of the function.
    """

    def __init__(self, fn: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        if not callable(fn):
            raise StructureError(
                f"{type(self).__name__}(fn) takes a function of an input and a target.", f"a {type(fn).__name__}", "pass fn"
            )
        self.function = fn

    def forward(self, input: Any, target: Any) -> Tensor:
        """The loss, a 0-d tensor.

        The gradient flows to the input, and to the target where that requires grad.

        Raises:
            LeafError: the function returned no tensor.
            NonScalarError: it returned more than one number.
        """
        value = self.function(input, target)
        asked = f"{type(self).__name__} is a loss: {self._function_name()}(input, target) gives one number."
        if not isinstance(value, Tensor):
            raise LeafError(asked, f"a {type(value).__name__}", "return a 0-d tensor")
        if value.dim():
            raise NonScalarError(asked, f"a tensor of shape {tuple(value.shape)}", "sum it, or take its mean")
        return value

    def extra_repr(self) -> str:
        return self._function_name()


def AutoCriterion(name: str) -> type[CriterionOfFunction]:
    """A class of losses, called `name`, each of which computes a function of its own.

    ``AutoCriterion("Squares")(fn)(input, target)`` is ``fn(input, target)``, a 0-d tensor. The gradient flows to the input,
    and to the target where that requires grad. Copies share the function; a loss pickles where another process can import
    its function.

    Args:
        name: what the class is called.

    Returns:
        The class; its constructor takes the function.

    Raises:
        StructureError: the name is not a string that Python takes as a name.

    Cost: nothing; a call of the loss is a call of its function.
    """
    return class_named(CriterionOfFunction, name)
