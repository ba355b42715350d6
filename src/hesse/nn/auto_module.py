"""`AutoModule`: an `nn.Module` made of a function of an input and parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.tree import Tree
from hesse.nn.parameter_tree import ParameterTree, register, shapes
from hesse.nn.persistence import OfFunction, class_named


class ModuleOfFunction(OfFunction):
    """A module that computes ``fn(input, weight, bias)``, or ``fn(params, *inputs)``; `AutoModule` names its classes.

    Args:
        fn: the function. It gets as few of input, weight and bias as it can be called with: all that are given, and None
            in the place of one that it cannot do without. Several inputs come as one tuple. An `nn.Module` may stand
            here too, with its own parameters beside.
        weight: a tensor, which is copied, or an `nn.Parameter`, which is shared, frozen or not; None for none.
            Integers and booleans become a buffer.
        bias: likewise.
        params: a tree of tensors and Python floats, in place of `weight` and `bias`; then the function is
            ``fn(params, *inputs)``, as `hesse.functional` and hesse's models have it. Leaves are registered by their paths;
            floats become 0-d parameters of torch's default dtype.

    Raises:
        StructureError: both `params` and a weight or a bias; a function that cannot be called with what is given; a leaf
            whose path cannot be the name of a parameter.

    Cost: one call of the function; its derivatives are PyTorch's, or those that the function brings along.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self, fn: Callable[..., Any], weight: Tensor | None = None, bias: Tensor | None = None, *, params: Tree = None
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not callable(fn):
            raise StructureError(f"{name}(fn, weight, bias) takes a function.", f"a {type(fn).__name__}", "pass fn first")
        self.function = fn
        self._tree: ParameterTree | None = None
        self._count = 0
        if params is None:
            register(self, "weight", weight, {})
            register(self, "bias", bias, {})
            self._count = _count(fn, 3 if bias is not None else 2 if weight is not None else 1, name)
            return
        if weight is not None or bias is not None:
            raise StructureError(
                f"{name}(fn, params=) takes all parameters as one tree.",
                "a weight or a bias beside it",
                "put them into the tree",
            )
        self._tree = ParameterTree(params)
        self._tree.register(self, params)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The function of the inputs, any shapes and dtypes that it takes; what it returns is returned."""
        if self._tree is not None:
            return self.function(self._tree.read(self), *inputs, **named)
        given = (inputs[0] if len(inputs) == 1 else inputs, self.weight, self.bias)
        return self.function(*given[: self._count], **named)

    def extra_repr(self) -> str:
        names = ["weight", "bias"] if self._tree is None else [path for path in self._tree.paths if "." not in path]
        return ", ".join([self._function_name(), *shapes(self, names)])


def AutoModule(name: str) -> type[ModuleOfFunction]:
    """A class of modules, called `name`, each of which computes a function of its own.

    ``AutoModule("Affine")(fn, weight, bias)`` is an `nn.Module` whose output is ``fn(input, weight, bias)``. Weight and
    bias are its parameters: they appear in `state_dict`, move with `to`, and are trained. The module stands in
    `nn.Sequential` beside others, is copied with its parameters, can be exported, and pickles where another process can
    import its function (an error says so otherwise). Each instance has its own function; one name gives one class.

    Args:
        name: what the class is called.

    Returns:
        The class; what its constructor takes is said in `ModuleOfFunction`.

    Raises:
        StructureError: the name is not a string that Python takes as a name.

    Cost: nothing; a call of the module is a call of its function.
    """
    return class_named(ModuleOfFunction, name)


def _count(fn: Callable[..., Any], given: int, name: str) -> int:
    """How many of input, weight and bias to call the function with: the fewest from `given` on that it takes."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # functions written in C have none
        return given
    for count in range(given, 4):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    raise StructureError(
        f"{name} calls its function with {', '.join(('input', 'weight', 'bias')[:given])}.",
        f"{getattr(fn, '__name__', fn)}{signature}",
        "write it as fn(input), fn(input, weight) or fn(input, weight, bias), or pass a tree as params=",
    )
