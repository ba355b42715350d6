"""Planted bugs with complex numbers and sparse tensors."""

from __future__ import annotations

import torch

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.planting import custom, draw, planter

BUGS: list[Bug] = []
plant = planter(BUGS)


def _complex(dtype, *shape, seed=0):
    return torch.complex(draw(dtype, *shape, seed=seed), draw(dtype, *shape, seed=seed + 50))


@plant("complex", "product of complex numbers: the factors are not conjugated")
def product_not_conjugated(dtype, planted):
    def backward(g, _, a, b):
        return (g * b, g * a) if planted else (g * b.conj(), g * a.conj())

    return Program(custom(lambda a, b: a * b, backward), (_complex(dtype, 3, 2), _complex(dtype, 3, 2, seed=1)))


@plant("complex", "absolute value of complex numbers: the real part of the derivative only")
def modulus_real_part(dtype, planted):
    def backward(g, y, z):
        slope = g * z / y
        return torch.complex(slope.real, torch.zeros_like(slope.imag)) if planted else slope

    return Program(custom(torch.abs, backward), (_complex(dtype, 3, 4),))


@plant("complex", "squared modulus: the holomorphic derivative instead of the conjugate one")
def squared_modulus(dtype, planted):
    return Program(
        custom(lambda z: z.real**2 + z.imag**2, lambda g, _, z: 2 * g * (z.conj() if planted else z)), (_complex(dtype, 3, 4),)
    )


@plant("complex", "Fourier transform: the backward pass is normalized like the inverse transform")
def fourier_normalized(dtype, planted):
    def backward(g, _, z):
        return torch.fft.ifft(g) * (1 if planted else z.shape[-1])

    return Program(custom(torch.fft.fft, backward), (_complex(dtype, 2, 5),))


@plant("complex", "a complex phase as a function of a real angle: the sign of the derivative is that of e^(-i a)")
def phase_sign(dtype, planted):
    def backward(g, y, angle):
        return (-1 if planted else 1) * (g * (1j * y).conj()).real

    return Program(custom(lambda angle: torch.polar(torch.ones_like(angle), angle), backward), (draw(dtype, 3, 4),))


def _pattern(dtype):
    mask = torch.tensor([[1, 0, 2, 0], [0, 3, 0, 0], [4, 0, 0, 5]], dtype=dtype)
    return (mask * draw(dtype, 3, 4)).to_sparse_coo().coalesce()


class _SparseProduct(torch.autograd.Function):
    """Sparse times dense; the gradient of the sparse factor has its pattern."""

    @staticmethod
    def forward(ctx, a, b, error):
        ctx.save_for_backward(a, b)
        ctx.error = error
        return torch.sparse.mm(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        a = a.coalesce()
        i, j = a.indices()
        values = (g[i] * b[j]).sum(1)
        if ctx.error == "order":
            values = values.flip(0)
        if ctx.error == "squared":
            values = values * a.values()
        other = torch.sparse.mm(a.mT, g)
        return torch.sparse_coo_tensor(a.indices(), values, a.shape), other, None


@plant("sparse input", "sparse times dense: the values of the sparse gradient are in the wrong order")
def sparse_order(dtype, planted):
    error = "order" if planted else ""
    return Program(lambda a, b: _SparseProduct.apply(a, b, error), (_pattern(dtype), draw(dtype, 4, 2, seed=1)))


@plant("sparse input", "sparse times dense: the gradient of the stored values is multiplied by the values")
def sparse_values(dtype, planted):
    error = "squared" if planted else ""
    return Program(lambda a, b: _SparseProduct.apply(a, b, error), (_pattern(dtype), draw(dtype, 4, 2, seed=1)))


@plant("sparse input", "a linear layer on sparse rows: stored zeros are dropped from the gradient")
def sparse_stored_zero(dtype, planted):
    class Rows(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, w):
            ctx.save_for_backward(a, w)
            return torch.sparse.mm(a, w).sin()

        @staticmethod
        def backward(ctx, g):
            a, w = ctx.saved_tensors
            a = a.coalesce()
            g = g * torch.sparse.mm(a, w).cos()
            i, j = a.indices()
            values = (g[i] * w[j]).sum(1)
            if planted:
                values = values * (a.values() != 0)
            return torch.sparse_coo_tensor(a.indices(), values, a.shape), torch.sparse.mm(a.mT, g)

    pattern = _pattern(dtype)
    values = pattern.values().clone()
    values[2] = 0
    rows = torch.sparse_coo_tensor(pattern.indices(), values, pattern.shape).coalesce()
    return Program(Rows.apply, (rows, draw(dtype, 4, 2, seed=1)))
