"""Programs that contain derivatives: penalties, operators, solvers, learning inside learning, custom rules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import hesse

from .suite import Draw, Made, parameters, program


def _net(params: Any, x: Tensor) -> Tensor:
    return torch.tanh(x @ params["W"] + params["b"]) @ params["V"]


def _params(d: Draw, inputs: int = 3, outputs: int = 2) -> dict[str, Tensor]:
    return {"W": d.normal(inputs, 5), "b": d.normal(5), "V": d.normal(5, outputs)}


@program("second")
def gradient_penalty(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        out = _net(params, x)
        (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out.mean() + ((g.norm(dim=1) - 1) ** 2).mean()

    return f, (_params(d), d.normal(d.n, 3)), {}


@program("second")
def laplacian_training(d: Draw) -> Made:
    def f(params: Any, x: Tensor, source: Tensor) -> Tensor:
        def solution(point: Tensor) -> Tensor:
            return _net(params, point)[0]

        return (vmap(lambda p: hessian(solution)(p).diagonal().sum())(x) - source).square().mean()

    return f, (_params(d, 2, 1), d.normal(d.n, 2), d.normal(d.n)), {}


@program("second")
def pinn_by_backward(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        u = _net(params, x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        second = sum(torch.autograd.grad(du[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1]))
        return (second + u.squeeze(1) ** 3).square().mean(), u

    return f, (_params(d, 2, 1), d.normal(d.n, 2)), {}


@program("second")
def hessian_product(d: Draw) -> Made:
    def f(params: Any, x: Tensor, v: Any) -> Tensor:
        return jvp(grad(lambda p: _net(p, x).square().mean()), (params,), (v,))[1]["W"].square().sum()

    return f, (_params(d), d.normal(d.n, 3), _params(d)), {}


@program()
def hessian_in_loss(d: Draw) -> Made:
    def f(w: Tensor, x: Tensor) -> Tensor:
        return torch.logdet(hessian(lambda p: torch.log1p(torch.exp(x @ p)).sum())(w) + torch.eye(3, dtype=x.dtype))

    return f, (d.normal(3), d.normal(d.n + 4, 3)), {}


@program("second")
def per_sample_gradient_norms(d: Draw) -> Made:
    def f(params: Any, x: Tensor, y: Tensor) -> Tensor:
        rows = vmap(grad(lambda p, a, b: (_net(p, a) - b).square().sum()), (None, 0, 0))(params, x, y)
        return sum(g.flatten(1).square().sum(1) for g in rows.values()).sqrt().mean()

    return f, (_params(d), d.normal(d.n, 3), d.normal(d.n, 2)), {}


@program("second")
def jacobian_in_loss(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        jacobians = vmap(jacrev(lambda p: _net(params, p)))(x)
        return jacobians.square().sum() + vmap(jacfwd(lambda p: _net(params, p)))(x).sin().sum(), jacobians

    return f, (_params(d), d.normal(d.n, 3)), {}


@program("second")
def score_matching(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        def energy(point: Tensor) -> Tensor:
            return _net(params, point).square().sum()

        trace = vmap(lambda p: torch.trace(jacrev(grad(energy))(p)))(x)
        return (trace + 0.5 * vmap(grad(energy))(x).square().sum(1)).mean()

    return f, (_params(d), d.normal(d.n, 3)), {}


@program("second")
def sliced_score_matching(d: Draw) -> Made:
    def f(params: Any, x: Tensor, v: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (s,) = torch.autograd.grad(-_net(params, x).square().sum(), x, create_graph=True)
        (sv,) = torch.autograd.grad((s * v).sum(), x, create_graph=True)
        return ((sv * v).sum(1) + 0.5 * (s * v).sum(1) ** 2).mean()

    return f, (_params(d), d.normal(d.n, 3), d.normal(d.n, 3)), {}


@program("second")
def meta_learning(d: Draw) -> Made:
    def f(params: Any, x: Tensor, y: Tensor, rate: float) -> Tensor:
        fast = params
        for _ in range(3):
            step = grad(lambda p: (_net(p, x) - y).square().mean())(fast)
            fast = {name: fast[name] - rate * step[name] for name in fast}
        return (_net(fast, x.flip(0)) - y).square().mean()

    return f, (_params(d), d.normal(d.n, 3), d.normal(d.n, 2), 0.1), {}


@program("second")
def meta_learning_by_hesse(d: Draw) -> Made:
    def f(params: Any, x: Tensor, y: Tensor) -> Tensor:
        inner = hesse.grad(lambda p: (_net(p, x) - y).square().mean())
        fast = params
        for _ in range(2):
            step = inner(fast)[0]
            fast = {name: fast[name] - 0.1 * step[name] for name in fast}
        return (_net(fast, x) - 2 * y).square().mean()

    return f, (_params(d), d.normal(d.n, 3), d.normal(d.n, 2)), {}


@program()
def hesse_jacobian_inside(d: Draw) -> Made:
    def f(w: Tensor, x: Tensor) -> Tensor:
        return hesse.jacobian(lambda p: torch.tanh(x @ p), w).jacobian.square().sum()

    return f, (d.normal(3), d.normal(d.n, 3)), {}


@program("second")
def implicit_fixed_iterations(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        for _ in range(6):
            z = torch.tanh(0.3 * z @ params["W"] + x)
        return z.square().sum()

    return f, ({"W": d.normal(4, 4, scale=0.5)}, d.normal(d.n, 4)), {}


@program("reads")
def implicit_until_small(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> tuple[Tensor, int]:
        z, steps = torch.zeros_like(x), 0
        residual = float("inf")
        while residual > 1e-3 and steps < 60:
            new = torch.tanh(0.3 * z @ params["W"] + x)
            residual = (new - z).abs().max().item()
            z, steps = new, steps + 1
        return z.square().sum(), steps

    return f, ({"W": d.normal(4, 4, scale=0.5)}, d.normal(d.n, 4)), {}


@program("second")
def implicit_function_theorem(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        matrix = params["A"] @ params["A"].T + torch.eye(4, dtype=x.dtype)
        with torch.no_grad():
            start = torch.linalg.solve(matrix, x)
        return (start + torch.linalg.solve(matrix.detach(), x - matrix @ start)).sin().sum()

    return f, ({"A": d.normal(4, 4)}, d.normal(4, d.n)), {}


@program("second")
def runge_kutta(d: Draw) -> Made:
    def f(params: Any, x: Tensor, step: float) -> Tensor:
        def field(y: Tensor) -> Tensor:
            return torch.tanh(y @ params["A"]) - 0.1 * y

        for _ in range(4):
            k1 = field(x)
            k2 = field(x + step / 2 * k1)
            k3 = field(x + step / 2 * k2)
            k4 = field(x + step * k3)
            x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x.square().sum()

    return f, ({"A": d.normal(3, 3)}, d.normal(d.n, 3), 0.1), {}


class _Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clamp(-1, 1)


@program("second")
def custom_function(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        return _Cubed.apply(x @ params["W"]).sum()

    return f, ({"W": d.normal(4, 3)}, d.normal(d.n, 4)), {}


@program()
def straight_through(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        return (_StraightThrough.apply(x @ params["W"]) * 0.3).square().sum()

    return f, ({"W": d.normal(4, 3)}, d.normal(d.n, 4)), {}


@program("second")
def double_backward_through_vjp(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        probe = torch.ones(x.shape[0], 2, dtype=x.dtype, requires_grad=True)
        x = x.detach().requires_grad_()
        (vjp,) = torch.autograd.grad(_net(params, x), x, probe, create_graph=True)
        (product,) = torch.autograd.grad(vjp, probe, torch.ones_like(vjp), create_graph=True)
        return product.square().sum()

    return f, (_params(d), d.normal(d.n, 3)), {}


@program("second")
def natural_step(d: Draw) -> Made:
    def f(w: Tensor, x: Tensor) -> Tensor:
        rows = vmap(grad(lambda p, a: torch.log1p(torch.exp(a @ p))), (None, 0))(w, x)
        fisher = rows.T @ rows / len(x) + 0.1 * torch.eye(3, dtype=w.dtype)
        return torch.linalg.solve(fisher, rows.mean(0)).square().sum()

    return f, (d.normal(3), d.normal(d.n + 2, 3)), {}


@program("second")
def gradient_of_module_input(d: Draw) -> Made:
    module = d.module(lambda: torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.SiLU(), torch.nn.Linear(4, 1)))
    params = parameters(module)

    def f(x: Tensor) -> Tensor:
        return vmap(grad(lambda p: functional_call(module, params, (p,)).squeeze()))(x).norm()

    def change() -> None:
        for p in params.values():
            p.mul_(1.5)

    f.change = change  # type: ignore[attr-defined]
    return f, (d.normal(d.n, 3),), {}
