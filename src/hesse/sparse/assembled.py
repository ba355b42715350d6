"""Entries as matrices of `torch.sparse` whose derivatives are right: in torch's own, those of gradients lack terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from hesse.core.errors import UnsupportedError
from hesse.operators.sparse import is_dual

_REMEDY = "take layout='dense' or layout='operator'"


def coo_matrix(values: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """A matrix of coordinates, differentiable by its entries twice: torch loses terms of the third derivative of `values()`.

    Args:
        values: ``[nnz]``, shared with the matrix.
        places: ``[2, nnz]``, int64, in the order of rows, and of columns in each; the matrix gets a copy.
        shape: of the matrix.

    Returns:
        A coalesced sparse tensor.

    Raises:
        UnsupportedError: under `vmap`, or in forward mode; at the backward of a third derivative.
    """
    if _is_derived(values):
        return _Coordinates.apply(values, places, shape, _Passes())  # pyright: ignore[reportReturnType]
    return _coordinates(values, places, shape)


def compressed_matrix(values: Tensor, places: Tensor, make: Callable[[Tensor], Tensor], name: str) -> Tensor:
    """A matrix of compressed rows, columns or blocks, differentiable by its entries once: torch loses the second derivative of
    what it stores, so that this is refused.

    Args:
        values: ``[nnz]``.
        places: ``[2, nnz]``, int64, of the values; never written to.
        make: the matrix of the values.
        name: of the layout, for the error.

    Returns:
        What `make` returns.

    Raises:
        UnsupportedError: in a transform of `torch.func`, or in forward mode; at the backward of a second derivative.
    """
    if is_functorch_wrapped_tensor(values):
        raise _refuse("a transform of torch.func, which takes no compressed rows, columns or blocks")
    if _is_derived(values):
        return _Compressed.apply(values, places, make, name)  # pyright: ignore[reportReturnType]
    return make(values)


def _is_derived(values: Tensor) -> bool:
    return values.requires_grad or is_functorch_wrapped_tensor(values) or is_dual(values)


def _coordinates(values: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    own = places.clone(memory_format=torch.contiguous_format)
    return torch.sparse_coo_tensor(own, values, shape, is_coalesced=True, check_invariants=False)


def _refuse(what: str) -> UnsupportedError:
    return UnsupportedError("A sparse tensor is made of the entries of a derivative.", what, _REMEDY)


class _Reverse(torch.autograd.Function):
    """Base of functions that have a backward only, and say so."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise _refuse("forward mode, which torch.sparse does not have")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise _refuse("vmap, which torch.sparse does not have")


@dataclass
class _Passes:
    """Whether a second derivative of a matrix was computed with a graph, for a third one."""

    third: bool = False


class _Coordinates(_Reverse):
    """Entries to a matrix; its adjoint is `_Gathered`."""

    @staticmethod
    def forward(values: Tensor, places: Tensor, shape: tuple[int, int], passes: _Passes) -> Tensor:  # pyright: ignore
        return _coordinates(values, places, shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.rest = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        found = _Gathered.apply(grad, *ctx.rest)
        if ctx.rest[-1].third and torch.is_grad_enabled():
            found = _Last.apply(found, ctx.saved_tensors[0], "a third derivative through layout='coo'")
        return found, None, None, None


class _Gathered(_Reverse):
    """The elements of a matrix of any layout at places; its adjoint is `_Coordinates`, sparse for a dense matrix too."""

    @staticmethod
    def forward(matrix: Tensor, places: Tensor, shape: tuple[int, int], passes: _Passes) -> Tensor:  # pyright: ignore
        return _elements(matrix, places)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rest = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        places, shape, passes = ctx.rest
        passes.third |= torch.is_grad_enabled()
        return _Coordinates.apply(grad, places, shape, _Passes()), None, None, None


class _Compressed(_Reverse):
    """Entries to a matrix whose gradient has no derivative."""

    @staticmethod
    def forward(values: Tensor, places: Tensor, make: Callable[[Tensor], Tensor], name: str) -> Tensor:  # pyright: ignore
        return make(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.places, ctx.name = inputs[1], inputs[3]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        found = _elements(grad, ctx.places)
        if torch.is_grad_enabled():
            found = _Last.apply(found, ctx.saved_tensors[0], f"a second derivative through layout='{ctx.name}'")
        return found, None, None, None


class _Last(_Reverse):
    """A derivative that torch.sparse could differentiate wrongly only.

    It hangs on the entries too, so that nobody comes past it to what these were computed from.
    """

    @staticmethod
    def forward(gradient: Tensor, values: Tensor, what: str) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.what = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise _refuse(f"{ctx.what}, of which torch.sparse loses terms")


def _elements(matrix: Tensor, places: Tensor) -> Tensor:
    """``[nnz]``: those of a matrix of any layout; zero where it has none."""
    rows, columns = places
    if matrix.layout is torch.strided:
        return matrix[rows, columns]
    known = (matrix if matrix.layout is torch.sparse_coo else matrix.to_sparse_coo()).coalesce()
    own, values = known._indices(), known._values()
    if own.shape == places.shape and torch.equal(own, places):
        return values.clone()
    if not len(values):
        return values.new_zeros(len(rows))
    names, wanted = own[0] * matrix.shape[1] + own[1], rows * matrix.shape[1] + columns
    at = torch.searchsorted(names, wanted).clamp_(max=len(names) - 1)
    return torch.where(names[at] == wanted, values[at], 0)
