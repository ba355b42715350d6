"""The derivatives of ``x = A⁺ y`` by y and by the weight of the convolution A: Golub and Pereyra's, of every order and mode.

Golub and Pereyra (1973), equation (4.12): where the rank does not change,
``dA⁺ = -A⁺ dA A⁺ + A⁺ A⁺ᴴ dAᴴ (I - A A⁺) + (I - A⁺ A) dAᴴ A⁺ᴴ A⁺``. What follows needs products and solutions only, so
that nothing of the iterations behind a solution is recorded.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from hesse.convolutions.cached import Inverses
from hesse.convolutions.certificate import applied
from hesse.convolutions.geometry import Geometry
from hesse.convolutions.products import convolve, convolve_transposed
from hesse.convolutions.weight_gradient import weight_gradient
from hesse.core.errors import UnsupportedError
from hesse.linalg.products import work_dtype

_CLEAR_GAP = 1e3


class TruncationWarning(RuntimeWarning):
    """A derivative by the weight of a pseudo-inverse whose cut-off lies among singular values of like size is approximate."""


def pseudo_inverse_product(weight: Tensor, Y: Tensor, inverses: Inverses, *, adjoint: bool = False) -> Tensor:
    """``A⁺ y`` for images ``[k, *out_shape]``, or ``A⁺ᴴ x`` for images ``[k, *in_shape]``.

    Differentiable by `weight` and `Y` to any order, in reverse and forward mode, and within the transforms of torch.func;
    `vmap` over the images makes one block of them, over the weights a loop. The memory does not grow with iterations.

    The derivative by the weight is that at constant rank. Where singular values have been cut off, its relative error is about
    the largest dropped one over the smallest kept one, `Inverse.gap` to the power -1.

    Args:
        weight: of the convolution; of 16 bits it is taken in single precision, and the result is rounded.
        Y: images, of its dtype.
        inverses: where the inverse for these values of the weight comes from.
        adjoint: apply the adjoint of the pseudo-inverse.

    Raises:
        NotConvergedError: a solution did not pass its certificate.

    Cost: one solution; backward one more (the adjoint one) for the gradient by `Y`. By the weight: none more for regular
    A, 1 for full column rank, 2 for full row rank, 3 otherwise. Forward mode as much as backward mode.
    """
    dtype = work_dtype(weight.dtype)
    if dtype != weight.dtype:  # certificates to 16 bits would say nothing
        return pseudo_inverse_product(weight.to(dtype), Y.to(dtype), inverses, adjoint=adjoint).to(weight.dtype)
    return _Product.apply(weight, Y, inverses, adjoint)  # pyright: ignore[reportReturnType]


class _Product(torch.autograd.Function):
    """``M⁺ y``, where M is A or its adjoint."""

    @staticmethod
    def forward(weight: Tensor, Y: Tensor, inverses: Inverses, adjoint: bool) -> Tensor:
        if is_legacy_batchedtensor(weight) or is_legacy_batchedtensor(Y):
            raise UnsupportedError(
                "Pseudo-inverses of convolutions are mapped by torch.func.vmap.",
                "the older vmap behind torch.autograd.grad(is_grads_batched=True) and jacobian(vectorize=True)",
                "use torch.func.vmap and jacrev, or hesse.jacobian",
            )
        return applied(inverses.of(weight), Y, adjoint=adjoint, cut=inverses.rtol)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, Y, inverses, adjoint = inputs
        ctx.map = _Map(inverses, adjoint)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, Y, output)
        ctx.save_for_forward(weight, Y, output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        if grad is None:
            return None, None, None, None
        weight, Y, X = ctx.saved_tensors
        by_weight, by_images = _pulled(ctx.map, (weight, Y, X), grad, ctx.needs_input_grad[0])
        return by_weight, by_images, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        # PyTorch switches forward mode off in here, and with it the levels of nested transforms outside of this one, whose
        # part of the derivative would be lost; on again, the tensors have to be taken at this level's own values.
        unpack: Any = torch._VF._unpack_dual  # pyright: ignore[reportAttributeAccessIssue]
        weight, Y, X = (unpack(saved, 0)[0] for saved in ctx.saved_tensors)
        before = torch._C._is_fwd_grad_enabled()
        torch._C._set_fwd_grad_enabled(True)
        try:
            return _pushed(ctx.map, (weight, Y, X), tangents[0], tangents[1])
        finally:
            torch._C._set_fwd_grad_enabled(before)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        (weight, Y, inverses, adjoint), (of_weight, of_images, *_) = args, in_dims
        if of_weight is None:
            Y = Y.movedim(of_images, 0)
            X = pseudo_inverse_product(weight, Y.flatten(0, 1), inverses, adjoint=adjoint)
            return X.unflatten(0, Y.shape[:2]), 0
        count = info.batch_size
        inverses.expect(count)
        found = [
            pseudo_inverse_product(
                weight.select(of_weight, i), Y if of_images is None else Y.select(of_images, i), inverses, adjoint=adjoint
            )
            for i in range(count)
        ]
        return torch.stack(found), 0


class _Map:
    """M, which is A or its adjoint, as a function of the weight; and what is known of its rank."""

    def __init__(self, inverses: Inverses, adjoint: bool) -> None:
        self.inverses, self.adjoint = inverses, adjoint
        g: Geometry = inverses.geometry
        self.geometry, self.gap = g, inverses.gap
        out, into = (g.in_dim, g.out_dim) if adjoint else (g.out_dim, g.in_dim)
        self.full_columns = inverses.full_rank and into <= out
        self.full_rows = inverses.full_rank and out <= into

    def product(self, weight: Tensor, V: Tensor) -> Tensor:
        """``M v``."""
        return self._adjoint(weight, V) if self.adjoint else convolve(self.geometry, weight, V)

    def back(self, weight: Tensor, V: Tensor) -> Tensor:
        """``Mᴴ v``."""
        return convolve(self.geometry, weight, V) if self.adjoint else self._adjoint(weight, V)

    def _adjoint(self, weight: Tensor, V: Tensor) -> Tensor:
        return convolve_transposed(self.geometry, weight.conj(), V)

    def by_weight(self, X: Tensor, V: Tensor) -> Tensor:
        """The gradient of ``Re <v, M x>`` by the weight."""
        return weight_gradient(self.geometry, V, X) if self.adjoint else weight_gradient(self.geometry, X, V)

    def solved(self, weight: Tensor, *blocks: Tensor) -> list[Tensor]:
        """``M⁺ y`` for blocks of images, as one."""
        return self._apply(weight, blocks, self.adjoint)

    def solved_back(self, weight: Tensor, *blocks: Tensor) -> list[Tensor]:
        """``M⁺ᴴ x`` for blocks of images, as one."""
        return self._apply(weight, blocks, not self.adjoint)

    def _apply(self, weight: Tensor, blocks: tuple[Tensor, ...], adjoint: bool) -> list[Tensor]:
        first, *others = blocks
        whole = torch.cat(blocks) if others else first
        found = pseudo_inverse_product(weight, whole, self.inverses, adjoint=adjoint)
        return list(found.split([len(block) for block in blocks]))

    def warn(self) -> None:
        """If the cut-off has no gap."""
        if self.gap < _CLEAR_GAP:
            text = f"The smallest singular value kept is {self.gap:.3g} times the largest dropped one: derivatives by the"
            text += f" weight are off by a fraction of about {1 / self.gap:.1g}. Choose an rtol where there is a gap."
            warnings.warn(text, TruncationWarning, stacklevel=2)


_Saved = tuple[Tensor, Tensor, Tensor]  # weight, images, solutions


def _pulled(m: _Map, saved: _Saved, grad: Tensor, wants_weight: bool) -> tuple[Tensor | None, Tensor]:
    """Gradients by the weight and by the images."""
    weight, Y, X = saved
    if not wants_weight:
        return None, m.solved_back(weight, grad)[0]
    m.warn()
    forth: list[Tensor] = []
    if m.full_columns:
        (v,) = m.solved_back(weight, grad)
        u = None
    else:
        v, u = m.solved_back(weight, grad, X)
        forth.append(m.product(weight, grad))
    if not m.full_rows:
        forth.append(v)
    found = m.solved(weight, *forth) if forth else []
    total = -m.by_weight(X, v)
    if not m.full_rows:
        total = total + m.by_weight(found.pop(), Y - m.product(weight, X))
    if u is not None:
        total = total + m.by_weight(grad - found.pop(), u)
    return total, v


def _pushed(m: _Map, saved: _Saved, d_weight: Tensor | None, d_images: Tensor | None) -> Tensor:
    """The tangent of ``M⁺ y``."""
    weight, Y, X = saved
    if d_weight is None:
        return torch.zeros_like(X) if d_images is None else m.solved(weight, d_images)[0]
    m.warn()
    right = -m.product(d_weight, X) if d_images is None else d_images - m.product(d_weight, X)
    back: list[Tensor] = [] if m.full_columns else [X]
    if not m.full_rows:
        back.append(m.back(d_weight, Y - m.product(weight, X)))
    found = m.solved_back(weight, *back) if back else []
    if not m.full_rows:
        right = right + found.pop()
    if m.full_columns:
        return m.solved(weight, right)[0]
    q = m.back(d_weight, found.pop())
    return m.solved(weight, right - m.product(weight, q))[0] + q
