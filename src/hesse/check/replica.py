"""A private copy of a model, its loss and one batch: whatever is done to it, the user's objects stay as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hesse.core import tree
from hesse.core.errors import LeafError, UnsupportedError
from hesse.core.tree import Tree

Model = nn.Module | tuple[Callable[..., Any], Tree]
_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


class Replica:
    """A copy of (model, loss, batch), in another dtype and on another device if asked for.

    Tied parameters stay tied, modes and buffers are copied, integers keep their type. Random numbers that the copy
    draws do not advance the global generators.

    Args:
        model: a module, or a pair (f, params) with ``f(params, *inputs)``.
        loss: ``loss(output, target)``; a module is copied too.
        batch: ``(inputs, targets)``; inputs are a tensor, a tuple of positional or a dict of keyword inputs.
        dtype: a real floating-point type for every floating-point tensor, or None to keep each.
        device: where the copy lives, or None to keep.

    Attributes:
        model, loss, batch: the copies, in the form in which they came.
        leaves: the differentiated parameters by name, in the order of the model; each once, even if tied.

    Raises:
        UnsupportedError: a module that cannot be copied.
        LeafError: no parameter that can be differentiated.
    """

    def __init__(
        self, model: Model, loss: Any, batch: tuple[Tree, Tree], *, dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=_target_dtype(tensor, dtype))

        self.model: Model
        if isinstance(model, nn.Module):
            self.model = _copy_module(model, cast)
            self.leaves = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        else:
            f, params = model
            own = tree.map_tree(lambda leaf: _detached(leaf, cast), params)
            self.model = (f, own)
            self.leaves = {name: leaf for name, leaf in tree.named_leaves(own) if leaf.requires_grad}
        if not self.leaves:
            raise LeafError(
                "Derivatives with respect to the parameters were asked for.",
                "no parameter of floating-point or complex type with requires_grad=True",
                "unfreeze the parameters of interest: parameter.requires_grad_(True)",
            )
        self.loss = _copy_module(loss, cast) if isinstance(loss, nn.Module) else loss
        self.batch: tuple[Tree, Tree] = tree.map_tree(lambda leaf: _moved(leaf, cast), (batch[0], batch[1]))

    def output(self) -> Any:
        """The model's output on the batch; the global random state is put back afterwards."""
        with torch.random.fork_rng(devices=self._cuda_devices()):
            return call_model(self.model, self.batch[0])

    def value(self) -> Tensor:
        """The loss of the batch, as the user's function returns it; the same at every call even if it is random."""
        return self.values(1)[0]

    def values(self, count: int) -> list[Tensor]:
        """The loss evaluated several times in a row: different ones if the model or the loss is random."""
        with torch.random.fork_rng(devices=self._cuda_devices()):
            return [self.loss(call_model(self.model, self.batch[0]), self.batch[1]) for _ in range(count)]

    def gradient(self) -> dict[str, Tensor]:
        """The reverse-mode gradient by name (zeros for a parameter that the loss does not reach).

        Cost: one gradient.
        """
        for leaf in self.leaves.values():
            leaf.grad = None
        self.value().backward()
        gradient = {}
        for name, leaf in self.leaves.items():
            gradient[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.to_dense()
            leaf.grad = None
        return gradient

    def _cuda_devices(self) -> list[int]:
        return sorted({leaf.device.index or 0 for leaf in self.leaves.values() if leaf.is_cuda})


def call_model(model: Model, inputs: Tree) -> Any:
    """Call a module or a pair (f, params) on a tensor, a tuple of positional, or a dict of keyword inputs."""
    function, first = (model, ()) if isinstance(model, nn.Module) else (model[0], (model[1],))
    if isinstance(inputs, dict):
        return function(*first, **inputs)
    return function(*first, *inputs) if isinstance(inputs, tuple) else function(*first, inputs)


def _target_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is None or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.dtype
    return _COMPLEX.get(dtype, tensor.dtype) if tensor.is_complex() else dtype


def _copy_module(module: nn.Module, cast: Callable[[Tensor], Tensor]) -> nn.Module:
    try:
        own = copy.deepcopy(module)
    except Exception as error:
        raise UnsupportedError(
            f"hesse works on a private copy of {type(module).__name__}.",
            f"it cannot be copied: {error}",
            "give the module no tensors computed from others as attributes, or pass a pair (f, params)",
        ) from error
    with torch.no_grad():
        own._apply(cast)  # the way of nn.Module.to, which would drop the imaginary parts of complex parameters
    for parameter in own.parameters():
        parameter.grad = None
    return own


def _moved(leaf: Any, cast: Callable[[Tensor], Tensor]) -> Any:
    return cast(leaf.detach()) if isinstance(leaf, Tensor) else leaf


def _detached(leaf: Any, cast: Callable[[Tensor], Tensor]) -> Tensor:
    tensor = leaf if isinstance(leaf, Tensor) else torch.tensor(leaf)
    own = cast(tensor.detach()).clone()
    return own.requires_grad_(own.is_floating_point() or own.is_complex())
