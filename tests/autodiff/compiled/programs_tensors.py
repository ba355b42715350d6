"""Programs that are tensor operations: linear algebra, indexing, views, in-place writes, complex numbers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .suite import Draw, Made, program


@program("second")
def gaussian_process(d: Draw) -> Made:
    def f(params: Any, x: Tensor, y: Tensor) -> Tensor:
        kernel = torch.exp(-0.5 * ((x[:, None] - x) / params["scale"]).square().sum(-1))
        factor = torch.linalg.cholesky(kernel + params["noise"].exp() * torch.eye(len(x), dtype=x.dtype))
        alpha = torch.cholesky_solve(y[:, None], factor)
        return 0.5 * y @ alpha[:, 0] + factor.diagonal().log().sum()

    params = {"scale": d.uniform(2) + 0.5, "noise": d.normal()}
    return f, (params, d.normal(d.n, 2), d.normal(d.n)), {}


@program("second")
def solve_and_logdet(d: Draw) -> Made:
    def f(a: Tensor, b: Tensor) -> Tensor:
        a = a @ a.T + torch.eye(4, dtype=a.dtype)
        return torch.linalg.solve(a, b).sum() + torch.logdet(a) + torch.linalg.inv(a).square().sum()

    return f, (d.normal(4, 4), d.normal(4, d.n)), {}


@program("second")
def eigen_decomposition(d: Draw) -> Made:
    def f(a: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(a + a.T)
        return values.exp().sum() + (vectors[:, -1].square() * torch.arange(4.0, dtype=a.dtype)).sum(), values

    return f, (d.normal(4, 4),), {}


@program("second")
def singular_values(d: Draw) -> Made:
    def f(a: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(a, full_matrices=False)
        return s.square().sum() + (u @ torch.diag(s.sqrt()) @ vh).sin().sum()

    return f, (d.normal(3, d.n + 1),), {}


@program("second")
def qr_and_triangular(d: Draw) -> Made:
    def f(a: Tensor, b: Tensor) -> Tensor:
        q, r = torch.linalg.qr(a)
        return torch.linalg.solve_triangular(r, q.T @ b, upper=True).square().sum()

    return f, (d.normal(5, 3), d.normal(5, d.n)), {}


@program("second")
def fourier(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x) * torch.fft.rfft(params, n=x.shape[-1])
        return torch.fft.irfft(spectrum, n=x.shape[-1]).square().sum() + spectrum.abs().sum()

    return f, (d.normal(4), d.normal(d.n, 7)), {}


@program("fixed")
def complex_parameters(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        z = x @ params["W"]
        return (z * z.conj()).real.sum() + torch.view_as_real(z).sin().sum() + params["phase"].angle().cos()

    return f, ({"W": d.complex(4, 3), "phase": d.complex()}, d.complex(d.n, 4)), {}


@program()
def sort_topk_cummax(d: Draw) -> Made:
    def f(x: Tensor, w: Tensor) -> Tensor:
        ordered, _ = torch.sort(x, dim=1, descending=True)
        best, _ = torch.topk(x, 2, dim=1)
        return (ordered * w).sum() + best.square().sum() + torch.cummax(x, 1)[0].sin().sum() + x.median(1)[0].sum()

    return f, (d.normal(d.n, 5), d.normal(5)), {}


@program("second")
def scans(d: Draw) -> Made:
    def f(x: Tensor) -> Tensor:
        return torch.cumsum(x, 0).square().sum() + torch.cumprod(x, 1).sum() + torch.logcumsumexp(x, 1).sum()

    return f, (d.normal(d.n, 4),), {}


@program("second")
def gather_scatter(d: Draw) -> Made:
    def f(x: Tensor, index: Tensor) -> Tensor:
        picked = x.gather(1, index)
        base = torch.zeros_like(x).scatter_add(1, index, picked.square())
        placed = base.index_add(0, torch.tensor([1, 0]), x[:2].sin())
        return (placed * x).sum() + x.index_select(1, index[0]).prod(1).sum()

    return f, (d.normal(d.n, 5), d.integers(5, d.n, 3)), {}


@program("second")
def index_put(d: Draw) -> Made:
    def f(params: Any, index: Tensor) -> Tensor:
        x = params["x"].clone()
        x[index] = params["v"]
        x = x.index_put((index, torch.zeros_like(index)), params["v"][:, 1], accumulate=True)
        return x.pow(3).sum()

    return f, ({"x": d.normal(6, 3), "v": d.normal(d.n, 3)}, torch.arange(d.n) + 1), {}


@program("second")
def direct_assignment(d: Draw) -> Made:
    def f(params: Any) -> Tensor:
        x = params["x"].clone()
        before = (2 * x).sum()
        x[0] = params["v"] * 2
        x[1, 2] = 3.0
        x[:, 1] *= params["v"][1]
        return before + x.sin().sum()

    return f, ({"x": d.normal(d.n, 4), "v": d.normal(4)},), {}


@program("second")
def in_place_ops(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        h = (x @ params["W"]).add_(params["b"])
        h.mul_(2).tanh_()
        h = h.sin()
        h[:, 0].sub_(1.0)
        buffer = torch.zeros_like(h)
        buffer += h
        buffer.addcmul_(h, h, value=0.5)
        return buffer.sum()

    return f, ({"W": d.normal(4, 3), "b": d.normal(3)}, d.normal(d.n, 4)), {}


@program()
def out_arguments(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        scratch = torch.empty(x.shape[0], 4, dtype=x.dtype)
        torch.mul(x, 2.0, out=scratch)
        noise = torch.zeros(0, dtype=x.dtype)
        torch.add(x, scratch, out=noise.resize_(x.shape))
        return torch.relu_(noise @ params["W"] * 1.0).sum()

    return f, ({"W": d.normal(4, 3)}, d.normal(d.n, 4)), {}


@program("mutates")
def argument_written(d: Draw) -> Made:
    def f(w: Tensor, memory: Tensor, x: Tensor) -> Tensor:
        out = torch.tanh(x @ w)
        memory.mul_(0.9).add_(out.detach().mean(0), alpha=0.1)
        return (out - memory).square().sum()

    return f, (d.normal(4, 3), d.normal(3), d.normal(d.n, 4)), {}


@program("second")
def masks_and_where(d: Draw) -> Made:
    def f(x: Tensor, mask: Tensor) -> Tensor:
        y = torch.where(x > 0, x.square(), torch.exp(x))
        return y.masked_fill(mask, 0.5).sum() + x.masked_scatter(mask, y).sin().sum() + x.clamp(-0.5, 0.7).sum()

    return f, (d.normal(d.n, 4), torch.arange(d.n * 4).reshape(d.n, 4) % 3 == 0), {}


@program("reads", "second")
def boolean_indexing(d: Draw) -> Made:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        positive = x[x > 0]
        return positive.square().sum() + 0.1 * x.sum(), positive

    return f, (d.normal(d.n, 5),), {}


@program("reads")
def nonzero_and_unique(d: Draw) -> Made:
    def f(x: Tensor, labels: Tensor) -> Tensor:
        rows = torch.nonzero(x.sum(1) > 0).squeeze(1)
        names, inverse = torch.unique(labels, return_inverse=True)
        sums = torch.zeros(len(names), x.shape[1], dtype=x.dtype).index_add(0, inverse, x)
        return sums.square().sum() + x[rows].sin().sum() + x.sum()

    return f, (d.normal(d.n + 2, 3), d.integers(4, d.n + 2)), {}


@program("second")
def views_of_inputs(d: Draw) -> Made:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        windows = x.as_strided((4, 3), (2, 1), 1)
        spread = x[:3, None].expand(3, 4)
        return (windows.sin() @ spread).sum() + x.unfold(0, 4, 2).prod(1).sum() + x.diag().square().sum(), windows

    return f, (d.normal(12),), {}


@program("second")
def inputs_anywhere_in_their_storage(d: Draw) -> Made:
    def f(x: Tensor, w: Tensor) -> Tensor:
        return (x.as_strided((2, 3), (1, 2), 4) * w[:2]).sin().sum() + (x.square() * w[0, 0]).sum()

    offset = int(d.integers(5, 1))
    return f, (d.normal(14)[offset : offset + 6], d.normal(d.n, 3)), {}


@program("second")
def non_contiguous_inputs(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        return torch.tanh(x @ params["W"]).sum() + params["row"].square().sum()

    params = {"W": d.normal(3, 4).T, "row": d.normal(6, 2)[1::2, 1]}
    return f, (params, d.normal(4, 2 * d.n).T[1::2]), {}


@program("second")
def expanded_inputs(d: Draw) -> Made:
    def f(x: Tensor, w: Tensor) -> Tensor:
        return (torch.sin(x) * w).sum()

    return f, (d.normal(1, 4).expand(d.n, 4), d.normal(d.n, 4)), {}


@program()
def empty_batch(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        return torch.tanh(x @ params["W"]).sum() + params["W"].sum()

    return f, ({"W": d.normal(4, 3)}, d.normal(0, 4)), {}


@program("second")
def zero_dimensional(d: Draw) -> Made:
    def f(params: Any) -> Tensor:
        return torch.sin(params["a"]) * params["b"] ** 2

    return f, ({"a": d.normal(), "b": d.normal()},), {}


@program("second")
def einsum_and_tensordot(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        y = torch.einsum("bi,ijk,bk->bj", x, params["core"], x)
        return torch.tensordot(y, params["V"], dims=([1], [0])).square().sum() + torch.outer(y[0], y[0]).sin().sum()

    return f, ({"core": d.normal(3, 4, 3), "V": d.normal(4, 2)}, d.normal(d.n, 3)), {}


@program()
def pairwise_distances(d: Draw) -> Made:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x, y).sum() + F.pdist(x).square().sum() + F.cosine_similarity(x[:1], y).sum()

    return f, (d.normal(d.n, 3), d.normal(4, 3)), {}


@program()
def sampled_grid(d: Draw) -> Made:
    def f(params: Any, image: Tensor) -> Tensor:
        grid = F.affine_grid(params["theta"], [image.shape[0], 2, 4, 5], align_corners=False)
        return F.grid_sample(image + params["shift"], grid, align_corners=False).square().sum()

    theta = torch.eye(2, 3, dtype=d.dtype) + d.normal(d.n, 2, 3, scale=0.1)
    return f, ({"theta": theta, "shift": d.normal(2, 1, 1)}, d.normal(d.n, 2, 5, 6)), {}


@program()
def interpolation_and_padding(d: Draw) -> Made:
    def f(x: Tensor) -> Tensor:
        total = F.interpolate(x, size=(5, 7), mode="bilinear", align_corners=True).square().sum()
        total = total + F.interpolate(x, scale_factor=2, mode="nearest").sin().sum()
        for mode in ("reflect", "replicate", "circular", "constant"):
            total = total + F.pad(x, (1, 2, 0, 1), mode=mode).pow(3).sum()
        return total

    return f, (d.normal(d.n, 2, 3, 4),), {}


@program("second")
def special_functions(d: Draw) -> Made:
    def f(x: Tensor) -> Tensor:
        return torch.lgamma(x).sum() + torch.erf(x).sum() + torch.special.i0(x).sum() + torch.digamma(x).sum()

    return f, (d.uniform(d.n, 4) + 0.5,), {}


@program("second")
def reductions(d: Draw) -> Made:
    def f(x: Tensor) -> Tensor:
        spread = x.var(0).sum() + x.std(1, correction=0).sum() + torch.logsumexp(x, 0).sum()
        return spread + x.prod() + x.norm(p=3) + x.amax(1).sum() + torch.linalg.norm(x, ord="fro")

    return f, (d.normal(d.n, 4),), {}


@program("fixed", "second")
def mixed_dtypes(d: Draw) -> Made:
    def f(params: Any, x: Tensor, k: Tensor) -> Tensor:
        y = params["a"].double() @ x + params["b"] * k
        return (y * torch.tensor([1, 2, 3])).sum().square()

    params = {"a": d.normal(4, dtype=torch.float32), "b": d.normal(3, dtype=torch.float64)}
    return f, (params, d.normal(4, 3, dtype=torch.float64), d.integers(5, 3)), {}
