"""The determinant of a square convolution by the determinants of a circulant and of its boundary.

``log|det A| = sum over frequencies of log|det C| + log|det S|`` (see `square`; Jacobi's identity for complementary minors).
What is decided by looking at numbers (which torus, and whether rounding lets S be trusted) is decided on plain values before
anything is differentiated or mapped.
"""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor, maybe_get_bdim
from torch._C._functorch import peek_interpreter_stack as _peek
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from hesse.convolutions.fields import Skew
from hesse.convolutions.geometry import Geometry
from hesse.convolutions.operator import Convolution
from hesse.convolutions.square import capacity, inverted_symbol, torus_symbol
from hesse.convolutions.symbol import multiplicities
from hesse.convolutions.torus import Torus

_WORST = 1e12  # norm of the inverse of S, relative to the norm of H, up to which pivots are more than rounding
_STEPS = 4


def log_determinant(A: Convolution) -> tuple[Tensor, Tensor] | None:
    """Sign (or phase) and logarithm of the modulus of the determinant of a square convolution, in the order of its images.

    Differentiable to any order, under `torch.func` transforms. None if the symbol is singular on every torus, or the boundary's
    matrix is nearly so: then the digits of a tiny determinant are rounding errors.

    Cost: an inverse and a determinant a frequency, two LU decompositions of the size of the boundary.
    """
    with _outside():
        skew = _trusted_torus(A.geometry, plain_values(A.weight))
        parity = _parity(A.geometry) if skew is not None else 1
    if skew is None:
        return None
    torus = Torus(A.geometry.one_group)
    C = torus_symbol(A, skew)
    half = not (A.weight.is_complex() or any(skew))
    counts = multiplicities(torus.size, half, C.device)
    phases, logs = torch.linalg.slogdet(C)
    H = torch.linalg.inv(C).flatten(0, A.geometry.ndim - 1)
    sign, rest = torch.linalg.slogdet(capacity(H, torus, A, skew))
    total = (logs.sum(-1) * counts).sum() + rest.sum()
    phase = phases.prod(-1)
    phase = (phase * torch.where(counts == 2, phase.conj(), 1)).prod() * sign.prod() * parity
    return (phase if A.weight.is_complex() else phase.real.round()), total


def triangular(A: Convolution) -> tuple[Tensor, Tensor] | None:
    """The same in closed form where every tap lies on one side of its pixel, in the order of pixels (masked, causal kernels).

    ``det A`` is then the determinant of the tap at the pixel itself to the power of the number of pixels. That says nothing of
    derivatives by taps that are zero, so that it is for weights that nobody differentiates or maps. None for other kernels.
    """
    g, weight = A.geometry, A.weight
    aligned = g.padding_mode == "zeros" and set(g.stride) == {1} and g.size == g.out_size
    if not aligned or g.in_channels != g.out_channels or weight.requires_grad or is_functorch_wrapped_tensor(weight):
        return None
    sides, middle = set[int](), torch.zeros(g.groups, *weight.shape[1:2] * 2, dtype=weight.dtype, device=weight.device)
    for tap in itertools.product(*(range(k) for k in g.kernel)):
        values = weight[(..., *tap)]
        away = [d * k - before for d, k, (before, _) in zip(g.dilation, tap, g.padding, strict=True)]
        if not any(away):
            middle = values.unflatten(0, (g.groups, -1))
        elif bool(values.any()) and all(abs(step) < n for step, n in zip(away, g.size, strict=True)):
            sides.add(1 if next(step for step in away if step) > 0 else -1)
    if len(sides) > 1:
        return None
    sign, logabs = torch.linalg.slogdet(middle)
    pixels = int(np.prod(g.size))
    return sign.prod() ** pixels, pixels * logabs.sum()


def plain_values(weight: Tensor) -> Tensor:
    """``[batch, *weight_shape]``: all the values that a tensor stands for within `torch.func` transforms."""
    shape, axes = weight.shape, list[int]()
    while is_functorch_wrapped_tensor(weight):
        if is_batchedtensor(weight):
            axes.append(maybe_get_bdim(weight))
        weight = get_unwrapped(weight)
    weight = weight.detach()
    for done, axis in enumerate(reversed(axes)):  # the innermost batch first; each axis counts those of the level around it
        weight = weight.movedim(axis + done, 0)
    return weight.reshape(-1, *shape)


def _outside() -> AbstractContextManager[object]:
    return temporarily_clear_interpreter_stack() if _peek() is not None else nullcontext()


def _trusted_torus(g: Geometry, weights: Tensor) -> Skew | None:
    """A torus on which every one of the convolutions has a trustworthy boundary."""
    known = [inverted_symbol(Convolution(weight, g)) for weight in weights]
    if any(k is None for k in known):
        return None
    skew = max((k for k in known if k is not None), key=lambda k: k.condition).skew
    for weight in weights:
        A = Convolution(weight, g)
        C = torus_symbol(A, skew).flatten(0, g.ndim - 1)
        H, info = torch.linalg.inv_ex(C)
        if bool(info.any()):
            return None
        size = float(torch.linalg.matrix_norm(H).max())  # what the rounding errors of S are relative to
        if not inverse_is_below(capacity(H, Torus(g.one_group), A, skew), _WORST / size):
            return None
    return skew


def inverse_is_below(S: Tensor, bound: float) -> bool:
    """Whether no 2-norm of the inverses of a batch of matrices is seen to be larger, by a few steps of inverse iteration."""
    if not S.numel():
        return True
    lu, pivots, info = torch.linalg.lu_factor_ex(S)
    if bool(info.any()) or not bool(torch.isfinite(lu).all()):
        return False
    v = torch.ones_like(S[..., :1]) + 0.1 * torch.arange(S.shape[-1], device=S.device)[:, None].remainder(7)
    size = torch.ones(())
    for _ in range(_STEPS):
        v = v / torch.linalg.vector_norm(v, dim=(-2, -1), keepdim=True)
        v = torch.linalg.lu_solve(lu, pivots, torch.linalg.lu_solve(lu, pivots, v), adjoint=True)
        size = torch.linalg.vector_norm(v, dim=(-2, -1))
    return bool(torch.isfinite(size).all()) and bool((size.sqrt() < bound).all())


def _parity(g: Geometry) -> int:
    """The sign of the reordering of outputs and inputs into image and ring, of all groups and channels."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    torus = Torus(g.one_group)
    o, i = g.out_channels // g.groups, g.in_channels // g.groups
    places = [
        (torus.outputs, torus.out_ring, o, 1),
        (torus.inputs, torus.in_ring, i, torus.phases),
    ]
    odd = 0
    for image, ring, channels, phases in places:
        flat = [(s.phases * torus.cells + s.cells).numpy() for s in (image, ring)]
        width = phases * torus.cells
        first = np.concatenate([c * width + flat[0] for c in range(channels)])  # image: channel by channel
        second = (np.arange(channels)[None, :] * width + flat[1][:, None]).ravel()  # ring: slot by slot
        order = np.concatenate([first, second])
        graph = coo_array((np.ones(len(order), dtype=np.int8), (np.arange(len(order)), order)))
        cycles, _ = connected_components(graph, directed=False)
        odd += len(order) - int(cycles)
    return (-1) ** (odd * g.groups)
