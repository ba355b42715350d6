"""An operator given by its entries that may differ from zero."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack

from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag, flat_space

_NUMPY = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_FEW = 2000  # entries, up to which `index_add` takes no longer than SciPy


def is_dual(tensor: Tensor) -> bool:
    """Whether a tensor carries a tangent of forward mode."""
    return torch._VF._unpack_dual(tensor, level=0)[1] is not None  # pyright: ignore


class Sparse(LinearOperator):
    """The operator with given entries; differentiable by them, and usable under `vmap`, as `torch.sparse` is not.

    Args:
        indices: ``[2, nnz]``, integers: row and column of each entry, in any order; entries at one place add up. They are
            copied.
        values: ``[nnz]``. They are not copied: the operator follows what is written into them.
        in_space, out_space: spaces, or numbers of columns and rows for bare vectors.
        tags: what is known of it; not checked.

    Raises:
        StructureError: indices outside of the spaces, or not as many as values.

    Cost: a product is 2 nnz operations, of large ones by SciPy's kernels where nothing has to be differentiated (2 to 15 times
    faster), else by an `index_add`.
    """

    def __init__(
        self,
        indices: Tensor,
        values: Tensor,
        in_space: Space | int,
        out_space: Space | int,
        tags: frozenset[Tag] = frozenset(),
    ) -> None:
        spaces = [flat_space(s, values.dtype, values.device) if isinstance(s, int) else s for s in (in_space, out_space)]
        self.in_space, self.out_space = spaces
        if tuple(indices.shape) != (2, *values.shape) or values.ndim != 1:
            raise StructureError(
                "Sparse needs the places of entries, and as many values.",
                f"shapes {tuple(indices.shape)} and {tuple(values.shape)}",
                "pass [2, nnz] and [nnz]",
            )
        if indices.dtype.is_floating_point or indices.dtype.is_complex or indices.dtype is torch.bool:
            raise StructureError("The places of entries are integers.", f"{indices.dtype}", "pass int64")
        if len(values):
            first, last = (part.tolist() for part in torch.aminmax(indices, dim=1))
            for low, high, size, name in zip(first, last, self.shape, ("row", "column"), strict=True):
                if low < 0 or high >= size:
                    raise StructureError(
                        "The entries of Sparse lie inside of the matrix.",
                        f"{name}s from {low} to {high}, of {size}",
                        "pass the spaces that they belong to",
                    )
        self.indices, self.values, self.tags = indices.to(torch.int64, copy=True), values, tags

    def mv(self, v: Tree) -> Tree:
        return self.out_space.unravel(self._times(self.in_space.ravel(v)))

    def mm(self, V: Tree) -> Tree:
        return self.out_space.unravel(self._times(self.in_space.ravel(V, 1)))

    def _times(self, flat: Tensor) -> Tensor:
        """``[..., in] -> [..., out]``, 16-bit numbers in float32."""
        dtype = torch.promote_types(torch.promote_types(self.values.dtype, flat.dtype), torch.float32)
        flat = flat.to(dtype)
        if self._is_plain(flat):
            array = flat.detach().resolve_conj().numpy()
            return torch.from_numpy(np.ascontiguousarray((self.scipy_array() @ array.T).T))
        rows, columns = self.indices
        products = self.values.to(dtype) * flat.index_select(-1, columns)
        return flat.new_zeros(*flat.shape[:-1], self.shape[0]).index_add(-1, rows, products)

    def _is_plain(self, flat: Tensor) -> bool:
        """Whether SciPy may compute the product: nobody but the caller looks at it, by a derivative, a transform or a mode."""
        if len(self.values) < _FEW:
            return False
        derived = torch.is_grad_enabled() and (flat.requires_grad or self.values.requires_grad)
        return (
            not derived
            and flat.device.type == self.values.device.type == "cpu"
            and self.values.dtype in _NUMPY
            and type(flat) is Tensor
            and type(self.values) in (Tensor, torch.nn.Parameter)
            and not (peek_interpreter_stack() or _len_torch_dispatch_stack() or torch.compiler.is_compiling())
            and not (is_dual(flat) or is_dual(self.values))
        )

    def transpose(self) -> LinearOperator:
        return Sparse(self.indices.flip(0), self.values, self.out_space, self.in_space, self.tags)

    def scipy_array(self) -> Any:
        """The entries as a SciPy sparse array ``[out, in]``: in compressed rows or columns where they come in that order.

        Returns:
            A `scipy.sparse` array that shares memory with `values` where these are on the CPU; 16-bit ones in float32.
        """
        import scipy.sparse

        values = self.values.detach().resolve_conj().cpu()
        if values.dtype not in _NUMPY:
            values = values.float()
        kind, places = self._places
        if kind is scipy.sparse.coo_array:
            return scipy.sparse.coo_array((values.numpy(), places), shape=self.shape)
        return kind((values.numpy(), *places), shape=self.shape)

    @cached_property
    def _places(self) -> tuple[Any, tuple[Any, Any]]:
        """SciPy's class for the order that the entries are in, and its index arrays."""
        import scipy.sparse

        rows, columns = self.indices.cpu().numpy()
        orders = ((scipy.sparse.csr_array, rows, columns), (scipy.sparse.csc_array, columns, rows))
        for (kind, lines, others), size in zip(orders, self.shape, strict=True):
            if bool((lines[1:] >= lines[:-1]).all()):
                ends = np.zeros(size + 1, np.int64)
                np.cumsum(np.bincount(lines, minlength=size), out=ends[1:])
                return kind, (others, ends)
        return scipy.sparse.coo_array, (rows, columns)

    @staticmethod
    def of(
        matrix: Any, in_space: Space | None = None, out_space: Space | None = None, tags: frozenset[Tag] = frozenset()
    ) -> Sparse:
        """A sparse matrix as an operator.

        Args:
            matrix: ``[out, in]``: of SciPy, of `torch.sparse` in any layout, or a dense tensor, whose zeros drop out.
            in_space, out_space: by default bare vectors of the matrix's dtype and device.
            tags: what is known of it; not checked.

        Returns:
            The operator, differentiable by the values of a tensor.

        Raises:
            StructureError: no matrix, or one that does not fit the spaces.
        """
        import scipy.sparse

        if scipy.sparse.issparse(matrix):
            known = scipy.sparse.coo_array(matrix)
            indices = torch.from_numpy(np.stack([known.row, known.col]).astype(np.int64))
            values = torch.from_numpy(np.ascontiguousarray(known.data))
        elif isinstance(matrix, Tensor) and matrix.ndim == 2 and matrix.dense_dim() in (0, 2):
            known = (matrix if matrix.layout is torch.sparse_coo else matrix.to_sparse_coo()).coalesce()
            indices, values = known.indices(), known.values()
        else:
            found = f"shape {tuple(matrix.shape)}" if isinstance(matrix, Tensor) else type(matrix).__name__
            raise StructureError("Sparse.of(matrix) takes a matrix.", found, "pass one of SciPy, or of torch.sparse")
        shape = tuple(matrix.shape)
        out_space, in_space = (
            flat_space(size, values.dtype, values.device) if space is None else space
            for size, space in zip(shape, (out_space, in_space), strict=True)
        )
        if shape != (out_space.dim, in_space.dim):
            raise StructureError(
                "The matrix does not fit the spaces.",
                f"{shape} for {(out_space.dim, in_space.dim)}",
                "pass a matrix of shape [out_space.dim, in_space.dim]",
            )
        return Sparse(indices, values, in_space, out_space, tags)

    def __repr__(self) -> str:
        tags = "".join(f", {text}" for text in sorted(tag.value for tag in self.tags))
        return f"Sparse({self.shape[0]} x {self.shape[1]}, {len(self.values)} entries{tags})"
