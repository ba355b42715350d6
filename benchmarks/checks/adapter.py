"""PyTorch programs for the checkers of JAX and of HIPS autograd: their forward and backward passes as primitives.

Both checkers perturb arrays and compare with the vector-Jacobian products of the primitive; the second order is the
derivative of the backward pass, by PyTorch's double backward. They count on the conjugate of PyTorch's gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.checks.bug import Program
from benchmarks.checks.ways import CannotRun, leaves_of

Arrays = tuple[np.ndarray, ...]


class Primitive:
    """A program as functions of arrays. Several outputs are joined into one vector."""

    def __init__(self, program: Program) -> None:
        self.call, self.leaves = leaves_of(program)
        if any(t.layout != torch.strided for t in self.leaves):
            raise CannotRun("sparse arguments")
        self.varied = [k for k, t in enumerate(self.leaves) if t.is_floating_point() or t.is_complex()]
        self.arguments: Arrays = tuple(self.leaves[k].numpy().copy() for k in self.varied)

    def value(self, *arrays: np.ndarray) -> np.ndarray:
        """The output."""
        with torch.no_grad():
            return self._output(_tensors(arrays)).numpy().copy()

    def pull(self, *arrays: np.ndarray) -> Arrays:
        """The gradients, of ``(*arguments, cotangent)``."""
        *leaves, g = _tensors(arrays)
        return tuple(t.detach().numpy().copy() for t in self._gradients(leaves, g.conj().resolve_conj(), create_graph=False))

    def pull_twice(self, *arrays: np.ndarray) -> Arrays:
        """Gradients of `pull`'s arguments, of ``(*arguments, cotangent, a cotangent for each gradient)``."""
        count = len(self.varied)
        tensors = _tensors(arrays)
        leaves, g, weights = tensors[:count], tensors[count].requires_grad_(), tensors[count + 1 :]
        found = self._gradients(leaves, g.conj(), create_graph=True)
        total = sum(((a * w).sum().real for a, w in zip(found, weights, strict=True)), torch.zeros(()))
        wanted = [*leaves, g]
        slopes = torch.autograd.grad(total, wanted, allow_unused=True) if total.requires_grad else [None] * len(wanted)
        return tuple(
            (torch.zeros_like(t) if s is None else s).conj().resolve_conj().detach().numpy().copy()
            for s, t in zip(slopes, wanted, strict=True)
        )

    def _output(self, varied: list[Tensor]) -> Tensor:
        leaves = list(self.leaves)
        for k, t in zip(self.varied, varied, strict=True):
            leaves[k] = t
        found = self.call(*leaves)
        if isinstance(found, Tensor):
            return found
        return torch.cat([t.reshape(-1) for t in found])

    def _gradients(self, leaves: list[Tensor], g: Tensor, *, create_graph: bool) -> list[Tensor]:
        for leaf in leaves:
            leaf.requires_grad_()
        output = self._output(leaves)
        if not output.requires_grad:
            return [torch.zeros_like(t) for t in leaves]
        found = torch.autograd.grad(output, leaves, g, allow_unused=True, create_graph=create_graph)
        return [(torch.zeros_like(t) if s is None else s).conj().resolve_conj() for s, t in zip(found, leaves, strict=True)]


def _tensors(arrays: Arrays) -> list[Tensor]:
    return [torch.from_numpy(np.array(a)) for a in arrays]


def jax_complaint(program: Program) -> str | None:
    """What `jax.test_util.check_grads` says, to the second order in reverse mode, with its default tolerances."""
    import jax
    from jax.test_util import check_grads

    jax.config.update("jax_enable_x64", True)
    primitive = Primitive(program)
    try:
        check_grads(_jax_function(jax, primitive), primitive.arguments, order=2, modes=["rev"])
    except AssertionError as error:
        return _line(error)
    return None


def _jax_function(jax: Any, primitive: Primitive) -> Callable[..., Any]:
    def like(arrays: Any) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)

    out = like(primitive.value(*primitive.arguments))
    count = len(primitive.varied)

    @jax.custom_vjp
    def pull(*args: Any) -> Any:
        return jax.pure_callback(primitive.pull, tuple(like(args[:count])), *args)

    def pull_back(args: Any, weights: Any) -> Any:
        return jax.pure_callback(primitive.pull_twice, tuple(like(args)), *args, *weights)

    pull.defvjp(lambda *args: (pull(*args), args), pull_back)

    @jax.custom_vjp
    def function(*args: Any) -> Any:
        return jax.pure_callback(primitive.value, out, *args)

    function.defvjp(lambda *args: (function(*args), args), lambda args, g: pull(*args, g))
    return function


def hips_complaint(program: Program) -> str | None:
    """What `autograd.test_util.check_grads` says, to the second order in reverse mode."""
    from autograd.test_util import check_grads

    primitive = Primitive(program)
    arguments = [a if a.ndim else float(a) for a in primitive.arguments]
    try:
        check_grads(_hips_function(primitive), tuple(range(len(arguments))), modes=["rev"], order=2)(*arguments)
    except AssertionError as error:
        return _line(error)
    return None


def _hips_function(primitive: Primitive) -> Callable[..., Any]:
    from autograd.extend import defvjp
    from autograd.extend import primitive as declare

    count = len(primitive.varied)
    kinds = [a.dtype for a in primitive.arguments]

    def typed(args: Any) -> list[Any]:
        return [np.asarray(a, dtype=kind) for a, kind in zip(args, kinds, strict=True)]

    def pull_of(k: int) -> Any:
        @declare
        def pull(*args: Any) -> Any:
            return primitive.pull(*typed(args[:count]), np.asarray(args[count]))[k]

        def back(j: int) -> Any:
            def maker(_: Any, *args: Any) -> Any:
                def push(v: Any) -> Any:
                    weights = [np.zeros_like(a) for a in primitive.arguments]
                    weights[k] = np.asarray(v, dtype=kinds[k])
                    return primitive.pull_twice(*typed(args[:count]), np.asarray(args[count]), *weights)[j]

                return push

            return maker

        defvjp(pull, *[back(j) for j in range(count + 1)])
        return pull

    @declare
    def function(*args: Any) -> Any:
        return primitive.value(*typed(args))

    pulls = [pull_of(k) for k in range(count)]
    makers = [lambda _, *args, pull=pull: lambda g: pull(*args, g) for pull in pulls]
    defvjp(function, *makers)
    return function


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
