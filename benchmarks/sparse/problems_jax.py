"""The problems as users of JAX write them; `problems_torch` has the same functions, line for line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.sparse import cases

Function = Callable[[Any], Any]


def burgers(n: int) -> Function:
    dx, nu = 1 / (n + 1), 0.01

    def f(u: Any) -> Any:
        p = jnp.pad(u, 1)
        return -u * (p[2:] - p[:-2]) / (2 * dx) + nu * (p[2:] - 2 * u + p[:-2]) / dx**2

    return f


def brusselator_1d(n: int) -> Function:
    m = n // 2
    a = (m + 1) ** 2 / 50

    def f(y: Any) -> Any:
        u, v = y[:m], y[m:]
        up = jnp.pad(u, 1, constant_values=1.0)
        vp = jnp.pad(v, 1, constant_values=3.0)
        du = 1 + u**2 * v - 4 * u + a * (up[2:] - 2 * u + up[:-2])
        dv = 3 * u - u**2 * v + a * (vp[2:] - 2 * v + vp[:-2])
        return jnp.concatenate([du, dv])

    return f


def brusselator_2d(n: int) -> Function:
    N = cases.side("brusselator_2d", n)
    a = 0.1 * N**2

    def laplacian(u: Any) -> Any:
        return jnp.roll(u, 1, 0) + jnp.roll(u, -1, 0) + jnp.roll(u, 1, 1) + jnp.roll(u, -1, 1) - 4 * u

    def f(y: Any) -> Any:
        u, v = y.reshape(2, N, N)
        du = 1 + u**2 * v - 4.4 * u + a * laplacian(u)
        dv = 3.4 * u - u**2 * v + a * laplacian(v)
        return jnp.stack([du, dv]).reshape(-1)

    return f


def energy(n: int) -> Function:
    N = cases.side("energy", n)

    def f(x: Any) -> Any:
        u = x.reshape(N, N)
        gradients = ((u[1:] - u[:-1]) ** 2).sum() + ((u[:, 1:] - u[:, :-1]) ** 2).sum()
        return 0.5 * gradients + 0.25 * ((u**2 - 1) ** 2).sum()

    return f


def volatility(n: int) -> Function:
    observed = jnp.asarray(cases.returns(n))

    def f(x: Any) -> Any:
        mean, h = x[0], x[2:]
        persistence = jnp.tanh(x[1])
        likelihood = 0.5 * (h + observed**2 * jnp.exp(-h)).sum()
        steps = h[1:] - mean - persistence * (h[:-1] - mean)
        return likelihood + 5 * (steps**2).sum() + 5 * (1 - persistence**2) * (h[0] - mean) ** 2

    return f


def mlp(n: int) -> Function:
    W, V = map(jnp.asarray, cases.weights())

    def f(x: Any) -> Any:
        return (jnp.tanh(x.reshape(-1, cases.FEATURES) @ W) @ V).reshape(-1)

    return f


def band(n: int) -> Function:
    kernel = jnp.asarray(cases.kernel())

    def f(x: Any) -> Any:
        return x * jnp.convolve(x**2, kernel[::-1], mode="same")

    return f


def blocks(n: int) -> Function:
    mixing = jnp.asarray(cases.mixing())

    def f(x: Any) -> Any:
        return (jax.nn.softmax(x.reshape(-1, cases.BLOCK), -1) @ mixing).reshape(-1)

    return f


def random(n: int) -> Function:
    rows, columns, weights = map(jnp.asarray, cases.drawn_entries(n))

    def f(x: Any) -> Any:
        return jnp.zeros_like(x).at[rows].add(weights * jnp.sin(x[columns]))

    return f


PROBLEMS: dict[str, Callable[[int], Function]] = {
    make.__name__: make for make in (burgers, brusselator_1d, brusselator_2d, energy, volatility, mlp, band, blocks, random)
}
