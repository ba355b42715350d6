"""The problems as users of PyTorch write them; `problems_jax` has the same functions, line for line."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from benchmarks.sparse import cases

Function = Callable[[Tensor], Tensor]


def burgers(n: int) -> Function:
    dx, nu = 1 / (n + 1), 0.01

    def f(u: Tensor) -> Tensor:
        p = pad(u, (1, 1))
        return -u * (p[2:] - p[:-2]) / (2 * dx) + nu * (p[2:] - 2 * u + p[:-2]) / dx**2

    return f


def brusselator_1d(n: int) -> Function:
    m = n // 2
    a = (m + 1) ** 2 / 50

    def f(y: Tensor) -> Tensor:
        u, v = y[:m], y[m:]
        up = pad(u, (1, 1), value=1.0)
        vp = pad(v, (1, 1), value=3.0)
        du = 1 + u**2 * v - 4 * u + a * (up[2:] - 2 * u + up[:-2])
        dv = 3 * u - u**2 * v + a * (vp[2:] - 2 * v + vp[:-2])
        return torch.cat([du, dv])

    return f


def brusselator_2d(n: int) -> Function:
    N = cases.side("brusselator_2d", n)
    a = 0.1 * N**2

    def laplacian(u: Tensor) -> Tensor:
        return torch.roll(u, 1, 0) + torch.roll(u, -1, 0) + torch.roll(u, 1, 1) + torch.roll(u, -1, 1) - 4 * u

    def f(y: Tensor) -> Tensor:
        u, v = y.reshape(2, N, N)
        du = 1 + u**2 * v - 4.4 * u + a * laplacian(u)
        dv = 3.4 * u - u**2 * v + a * laplacian(v)
        return torch.stack([du, dv]).reshape(-1)

    return f


def energy(n: int) -> Function:
    N = cases.side("energy", n)

    def f(x: Tensor) -> Tensor:
        u = x.reshape(N, N)
        gradients = ((u[1:] - u[:-1]) ** 2).sum() + ((u[:, 1:] - u[:, :-1]) ** 2).sum()
        return 0.5 * gradients + 0.25 * ((u**2 - 1) ** 2).sum()

    return f


def volatility(n: int) -> Function:
    observed = torch.from_numpy(cases.returns(n))

    def f(x: Tensor) -> Tensor:
        mean, h = x[0], x[2:]
        persistence = torch.tanh(x[1])
        likelihood = 0.5 * (h + observed**2 * torch.exp(-h)).sum()
        steps = h[1:] - mean - persistence * (h[:-1] - mean)
        return likelihood + 5 * (steps**2).sum() + 5 * (1 - persistence**2) * (h[0] - mean) ** 2

    return f


def mlp(n: int) -> Function:
    W, V = map(torch.from_numpy, cases.weights())

    def f(x: Tensor) -> Tensor:
        return (torch.tanh(x.reshape(-1, cases.FEATURES) @ W) @ V).reshape(-1)

    return f


def band(n: int) -> Function:
    kernel = torch.from_numpy(cases.kernel())

    def f(x: Tensor) -> Tensor:
        return x * conv1d((x**2)[None, None], kernel[None, None], padding=cases.HALF_WIDTH)[0, 0]

    return f


def blocks(n: int) -> Function:
    mixing = torch.from_numpy(cases.mixing())

    def f(x: Tensor) -> Tensor:
        return (torch.softmax(x.reshape(-1, cases.BLOCK), -1) @ mixing).reshape(-1)

    return f


def random(n: int) -> Function:
    rows, columns, weights = map(torch.from_numpy, cases.drawn_entries(n))

    def f(x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(0, rows, weights * torch.sin(x[columns]))

    return f


PROBLEMS: dict[str, Callable[[int], Function]] = {
    make.__name__: make for make in (burgers, brusselator_1d, brusselator_2d, energy, volatility, mlp, band, blocks, random)
}
