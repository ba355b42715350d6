"""Matrices of convolutions made by torch's own layers on unit images, and the Penrose equations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.convolutions.geometry import Geometry
from hesse.convolutions.operator import Convolution

CONV = (F.conv1d, F.conv2d, F.conv3d)
PAD = {"zeros": "constant", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}


def geometry(weight: Tensor, size: tuple[int, ...], **options: object) -> Geometry:
    """The options are those of `torch.nn.Conv2d`; padding may be pairs."""
    d = len(size)

    def each(name: str, default: int) -> tuple:
        value = options.get(name, default)
        return tuple(value) if isinstance(value, (tuple, list)) else (value,) * d

    groups = int(options.get("groups", 1))  # type: ignore[call-overload]
    pairs = tuple(p if isinstance(p, tuple) else (p, p) for p in each("padding", 0))
    mode = str(options.get("padding_mode", "zeros"))
    channels = (weight.shape[1] * groups, weight.shape[0])
    return Geometry(*channels, groups, size, tuple(weight.shape[2:]), each("stride", 1), each("dilation", 1), pairs, mode)


def convolution(weight: Tensor, size: tuple[int, ...], **options: object) -> Convolution:
    return Convolution(weight, geometry(weight, size, **options))


def by_torch(A: Convolution, x: Tensor) -> Tensor:
    """The convolution of images ``[k, *in_shape]`` as `torch.nn.ConvNd` does it."""
    g = A.geometry
    pairs = [cells for pair in reversed(g.padding) for cells in pair]
    x = F.pad(x, pairs, mode=PAD[g.padding_mode]) if any(pairs) else x
    return CONV[g.ndim - 1](x, A.weight, None, g.stride, 0, g.dilation, g.groups)


def matrix(A: Convolution) -> Tensor:
    """``[out_dim, in_dim]``."""
    g = A.geometry
    eye = torch.eye(g.in_dim, dtype=A.weight.dtype)
    return by_torch(A, eye.reshape(-1, *g.in_shape)).reshape(g.in_dim, -1).mT


def by_layer(A: Convolution, x: Tensor) -> Tensor:
    """The same through the layer class itself, for padding that it can express."""
    g = A.geometry
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[g.ndim - 1]
    padding = tuple(before for before, _ in g.padding)
    layer = kind(g.in_channels, g.out_channels, g.kernel, g.stride, padding, g.dilation, g.groups, False, g.padding_mode)
    layer.weight = nn.Parameter(A.weight)
    return layer(x).detach()


def images(A: Convolution, count: int, *, out: bool = True, seed: int = 5) -> Tensor:
    g = A.geometry
    shape = g.out_shape if out else g.in_shape
    return torch.randn(count, *shape, dtype=A.weight.dtype, generator=torch.Generator().manual_seed(seed))


def kernel(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def pinv_matrix(inverse: object, A: Convolution, *, adjoint: bool = False) -> Tensor:
    """The matrix of what an inverse applies."""
    g = A.geometry
    shape = g.in_shape if adjoint else g.out_shape
    eye = torch.eye(math.prod(shape), dtype=A.weight.dtype)
    return inverse.apply(eye.reshape(-1, *shape), adjoint=adjoint).value.reshape(len(eye), -1).mT  # type: ignore[attr-defined]


def assert_is_pinv(inverse: object, A: Convolution, *, rtol: float | None = None, slack: float = 100) -> None:
    """Against `torch.linalg.pinv`, to `slack` times the condition of the part kept times the rounding unit; the adjoint too."""
    M = matrix(A)
    values = torch.linalg.svdvals(M)
    ratio = max(M.shape) * torch.finfo(M.dtype).eps if rtol is None else rtol
    kept = values[values > ratio * values[0]]
    expected = torch.linalg.pinv(M, rtol=ratio)
    found = pinv_matrix(inverse, A)
    condition = float(values[0] / kept[-1]) if len(kept) else 1.0
    scale = float(torch.linalg.matrix_norm(expected, 2)) * condition * torch.finfo(M.dtype).eps
    assert float(torch.linalg.matrix_norm(found - expected, 2)) <= slack * scale
    back = pinv_matrix(inverse, A, adjoint=True)
    assert float(torch.linalg.matrix_norm(back - expected.mH, 2)) <= slack * scale
    assert inverse.truncated == len(values) - len(kept)  # type: ignore[attr-defined]
    assert inverse.norm() == float(values[0]) or abs(inverse.norm() / float(values[0]) - 1) < 1e-12  # type: ignore[attr-defined]
    assert abs(inverse.condition() / condition - 1) < 1e-13 * condition * slack  # type: ignore[attr-defined]


def assert_spectrum_and_null_space(inverse: object, A: Convolution) -> None:
    """Of an inverse that counts singular values: all of them, and bases of the null spaces of A and its adjoint."""
    assert inverse is not None
    M = matrix(A)
    values = torch.linalg.svdvals(M)
    torch.testing.assert_close(inverse.singular_values(), values, rtol=1e-12, atol=1e-14 * float(values[0]))  # type: ignore[attr-defined]
    rank = len(values) - inverse.truncated  # type: ignore[attr-defined]
    for adjoint, block in ((False, M), (True, M.mH)):
        null = inverse.null_vectors(adjoint=adjoint).flatten(1)  # type: ignore[attr-defined]
        assert len(null) == block.shape[1] - rank
        torch.testing.assert_close(null.conj() @ null.mT, torch.eye(len(null)).to(null))
        assert float((block @ null.mT).abs().sum()) <= 1e-12 * len(null) * float(values[0])


def penrose(M: Tensor, P: Tensor) -> float:
    """The largest of the four relative Penrose residuals."""
    norm = torch.linalg.matrix_norm
    MP, PM = M @ P, P @ M
    pairs = [(MP @ M - M, M), (PM @ P - P, P), (MP - MP.mH, MP), (PM - PM.mH, PM)]
    return max(float(norm(a) / norm(b)) for a, b in pairs)
