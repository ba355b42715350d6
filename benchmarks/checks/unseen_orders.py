"""Unseen planted bugs of the second order, forward mode, batched calls, own diagonals, sparse and complex numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.bugs_memory import Weighted
from benchmarks.checks.planting import custom, draw, planter

BUGS: list[Bug] = []
plant = planter(BUGS)


@plant("second order", "the slope is computed in the forward pass and kept on the context, where nothing depends on x")
def slope_on_context(dtype, planted):
    class Atan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            ctx.slope = 1 / (1 + x * x)
            return x.atan()

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * (ctx.slope if planted else 1 / (1 + x * x))

    return Program(Atan.apply, (draw(dtype, 4, 3),))


@plant("second order", "a backward pass in NumPy, which is not said to be differentiable once only")
def backward_in_numpy(dtype, planted):
    def backward(g, _, x):
        if not planted:
            return -g * torch.sin(x) * torch.exp(torch.cos(x))
        a, u = x.detach().numpy(), g.detach().numpy()
        return torch.from_numpy(np.asarray(-u * np.sin(a) * np.exp(np.cos(a))))

    return Program(custom(lambda x: x.cos().exp(), backward, vmap=False), (draw(dtype, 3, 4),))


class _NormalizedSlope(torch.autograd.Function):
    """The backward pass of y = x / |x| for rows, with a derivative of its own."""

    @staticmethod
    def forward(ctx, g, x, planted):
        ctx.save_for_backward(g, x)
        ctx.planted = planted
        r = x.norm(dim=1, keepdim=True)
        y = x / r
        return (g - y * (g * y).sum(1, keepdim=True)) / r

    @staticmethod
    def backward(ctx, v):
        g, x = ctx.saved_tensors
        r = x.norm(dim=1, keepdim=True)
        y = x / r
        gy, vy, gv = ((a * b).sum(1, keepdim=True) for a, b in ((g, y), (v, y), (g, v)))
        slope = 3 * gy * vy * y - gv * y - gy * v
        if not ctx.planted:
            slope = slope - vy * g
        return (v - y * vy) / r, slope / r**2, None


@plant("second order", "double backward of rows of length one: of two terms that mirror each other only one is there")
def mirrored_term(dtype, planted):
    function = custom(
        lambda x: x / x.norm(dim=1, keepdim=True), lambda g, _, x: _NormalizedSlope.apply(g, x, planted), vmap=False
    )
    return Program(function, (draw(dtype, 4, 3),))


@plant("second order", "the backward pass is a second operation that saves its cotangent detached")
def cotangent_saved_detached(dtype, planted):
    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, g, a, b):
            ctx.save_for_backward(g, a, b)
            return g * b.exp()

        @staticmethod
        def backward(ctx, v):
            g, _, b = ctx.saved_tensors
            return v * b.exp(), None, (torch.zeros_like(b) if planted else v * g * b.exp())

    function = custom(lambda a, b: a * b.exp(), lambda g, _, a, b: (Slope.apply(g, a, b), g * a * b.exp()), vmap=False)
    return Program(function, (draw(dtype, 4, 3), draw(dtype, 4, 3, seed=1)))


@plant("forward mode", "jvp of log-softmax: the tangent's mean is subtracted, not its mean weighed by the probabilities")
def forward_log_softmax(dtype, planted):
    def push(t, y, _):
        return t[0] - (t[0].mean(1, keepdim=True) if planted else (y.exp() * t[0]).sum(1, keepdim=True))

    function = custom(lambda x: torch.log_softmax(x, 1), lambda g, y, _: g - y.exp() * g.sum(1, keepdim=True), push)
    return Program(function, (draw(dtype, 4, 3),))


@plant("forward mode", "jvp of a quotient: the denominator's tangent is divided once, not twice")
def forward_quotient(dtype, planted):
    def push(t, y, a, b):
        return (t[0] - (a if planted else y) * t[1]) / b

    function = custom(torch.div, lambda g, y, a, b: (g / b, -g * y / b), push)
    return Program(function, (draw(dtype, 4, 3), draw(dtype, 4, 3, seed=1).exp() + 0.5))


@plant("forward mode", "jvp of a convolution: the tangent of the kernel is convolved with its sides exchanged")
def forward_kernel_flipped(dtype, planted):
    conv = nn.functional.conv1d

    def push(t, _, x, w):
        return conv(t[0], w) + conv(x, t[1].flip(2) if planted else t[1])

    def backward(g, _, x, w):
        taps = [torch.einsum("not,nct->oc", g, x[:, :, k : k + g.shape[2]]) for k in range(w.shape[2])]
        return nn.functional.conv_transpose1d(g, w), torch.stack(taps, 2)

    return Program(custom(conv, backward, push), (draw(dtype, 2, 2, 6), draw(dtype, 3, 2, 3, seed=1)))


class _Samples(torch.autograd.Function):
    """Rows centered and scaled by a factor of their own, with a vmap rule that folds the mapped axis into the rows."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor, planted: bool) -> Tensor:
        return (x - x.mean(1, keepdim=True)) * scale[:, None]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, g):
        x, scale = ctx.saved_tensors
        u = g * scale[..., None]
        return u - u.mean(-1, keepdim=True), (g * (x - x.mean(-1, keepdim=True))).sum(-1), None

    @staticmethod
    def vmap(info, in_dims, x, scale, planted):
        count = info.batch_size
        x, scale = (
            t.expand(count, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip((x, scale), in_dims[:2], strict=True)
        )
        rows = x.shape[1]
        flat = scale.mT.reshape(-1) if planted else scale.reshape(-1)
        return _Samples.apply(x.reshape(count * rows, -1), flat, planted).view(count, rows, x.shape[2]), 0


@plant("vmap", "the vmap rule folds two axes into one: samples first for the rows, rows first for their factors")
def vmap_folded(dtype, planted):
    return Program(lambda x, s: _Samples.apply(x, s, planted), (draw(dtype, 3, 4), draw(dtype, 3, seed=1)))


class _BatchedSine(torch.autograd.Function):
    """A sine, with a vmap rule that leaves the mapped axis where it is."""

    @staticmethod
    def forward(x: Tensor, planted: bool) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos(), None

    @staticmethod
    def vmap(info, in_dims, x, planted):
        return _BatchedSine.apply(x, planted), 0 if planted else in_dims[0]


@plant("vmap", "the vmap rule says that the mapped axis comes out first, and leaves it where it came in")
def vmap_out_axis(dtype, planted):
    return Program(lambda x: _BatchedSine.apply(x, planted), (draw(dtype, 3, 3),))


class _WithShared(torch.autograd.Function):
    """x W^T with a vmap rule; a weight that is not mapped has no axis to be moved."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, planted: bool) -> Tensor:
        return x @ w.mT

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.mT @ x, None

    @staticmethod
    def vmap(info, in_dims, x, w, planted):
        x = x.expand(info.batch_size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        if in_dims[1] is not None:
            w = w.mean(in_dims[1]) if planted else w.movedim(in_dims[1], 0)
        return _WithShared.apply(x, w, planted), 0


@plant("vmap", "the vmap rule takes the mean of mapped weights, as if all were the same")
def vmap_mean_weight(dtype, planted):
    return Program(lambda x, w: _WithShared.apply(x, w, planted), (draw(dtype, 3, 4), draw(dtype, 2, 4, seed=1)))


class ScaleWithDiagonal(Weighted):
    """A scale and a shift for each column, with the sum over outputs of squared derivatives."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.weight = nn.Parameter(draw(dtype, 3, seed=5))
        self.bias = nn.Parameter(draw(dtype, 3, seed=6))

    def forward(self, x):
        return torch.sin(x * self.weight + self.bias)

    def diag_hessian(self, x):
        slope = torch.cos(x * self.weight + self.bias).detach().square()
        return {"weight": (slope * (x.abs() if self.planted else x.square())).sum(0), "bias": slope.sum(0)}


@plant("diagonal of the module", "the own diagonal of a scale takes the input's absolute value for its square")
def diagonal_of_scale(dtype, planted):
    return Program(ScaleWithDiagonal(dtype, planted), (draw(dtype, 4, 3),))


class MixedRows(Weighted):
    """Rows multiplied by a weight and mixed by a softmax, with the sum over outputs of squared derivatives."""

    def forward(self, x):
        return torch.softmax(x @ self.weight.mT, 1)

    def diag_hessian(self, x):
        p = self(x).detach()
        if self.planted:
            slope = (p * (1 - p)).square()
        else:
            slope = ((torch.eye(p.shape[1], dtype=p.dtype) - p[:, None]) * p[:, :, None]).square().sum(1)
        return {"weight": slope.mT @ x.detach().square()}


@plant("diagonal of the module", "the own diagonal goes by the diagonal of the softmax's Jacobian alone")
def diagonal_of_softmax(dtype, planted):
    return Program(MixedRows(dtype, planted), (draw(dtype, 4, 3),))


class _SparseTimes(torch.autograd.Function):
    """A sparse matrix times a dense one."""

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
        if ctx.error == "exchanged":
            i, j = j, i
        values = (g[i] * b[j]).sum(1)
        if ctx.error == "rows":
            values = values / torch.bincount(a.indices()[0], minlength=len(a))[a.indices()[0]]
        return torch.sparse_coo_tensor(a.indices(), values, a.shape), torch.sparse.mm(a.mT, g), None


def _square_pattern(dtype: torch.dtype) -> Tensor:
    indices = torch.tensor([[0, 0, 1, 2, 3, 3], [1, 3, 2, 2, 0, 3]])
    return torch.sparse_coo_tensor(indices, draw(dtype, 6), (4, 4)).coalesce()


@plant("sparse input", "sparse times dense: rows and columns of the stored places are exchanged in the gradient of the values")
def places_exchanged(dtype, planted):
    error = "exchanged" if planted else ""
    return Program(lambda a, b: _SparseTimes.apply(a, b, error), (_square_pattern(dtype), draw(dtype, 4, 2, seed=1)))


@plant("sparse input", "sparse times dense: the gradient of a value is divided by how many its row holds")
def divided_by_row(dtype, planted):
    error = "rows" if planted else ""
    return Program(lambda a, b: _SparseTimes.apply(a, b, error), (_square_pattern(dtype), draw(dtype, 4, 2, seed=1)))


@plant("complex", "Fourier transform of real numbers: the backward pass counts all of the half spectrum but its first twice")
def half_spectrum(dtype, planted):
    def backward(g, _, x):
        length = x.shape[1]
        if planted:
            return torch.fft.irfft(g, length) * length
        return torch.fft.fft(nn.functional.pad(g.conj(), (0, length - g.shape[-1]))).real

    return Program(custom(torch.fft.rfft, backward), (draw(dtype, 2, 7),))


@plant("complex", "inner product of complex rows: the conjugate is on the other factor in the gradient")
def inner_product(dtype, planted):
    def backward(g, _, a, b):
        if planted:
            return g[:, None] * b, g[:, None] * a
        return g.conj()[:, None] * b, g[:, None] * a

    a, b = (torch.complex(draw(dtype, 3, 2, seed=k), draw(dtype, 3, 2, seed=k + 2)) for k in range(2))
    return Program(custom(lambda a, b: (a.conj() * b).sum(1), backward), (a, b))


@plant("complex", "a modulus with a threshold: the gradient points along the real axis where it should point along z")
def shrunk_modulus(dtype, planted):
    def forward(z):
        r = z.abs()
        return z * torch.relu(r - 0.3) / r

    def backward(g, _, z):
        r = z.abs()
        phase = z / r
        along = (g * phase.conj()).real
        kept = (r > 0.3).to(r.dtype)
        radial = along * (1.0 if planted else phase)
        return kept * (radial + (g - along * phase) * (1 - 0.3 / r))

    z = torch.complex(draw(dtype, 4, 3), draw(dtype, 4, 3, seed=1))
    return Program(custom(forward, backward), (z,))
