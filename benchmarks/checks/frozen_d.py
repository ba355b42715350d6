"""Frozen planted bugs, fourth part: modules whose derivatives are wrong in some use. Not to be tuned upon."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from .bug import Bug, Program
from .frozen_a import draw, planter

BUGS: list[Bug] = []
plant = planter(BUGS)


def weight(seed: int, dtype: torch.dtype, *shape: int) -> nn.Parameter:
    return nn.Parameter(0.5 * draw(seed, dtype, *shape))


class Recurrent(nn.Module):
    def __init__(self, dtype: torch.dtype, planted: bool) -> None:
        super().__init__()
        self.w, self.u, self.planted = weight(81, dtype, 3, 4), weight(82, dtype, 4, 4), planted

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 4)
        for step in x.unbind(1):
            h = torch.tanh(step @ self.w + (h.detach() if self.planted else h) @ self.u)
        return h


@plant("cut graph", "recurrent network: the state is detached at every step")
def detached_state(dtype, planted):
    return Program(Recurrent(dtype, planted), (draw(83, dtype, 2, 3, 3),))


class Affine(Function):
    """x W + b; `flaw` names what is wrong with it, `module` is the layer that calls."""

    @staticmethod
    def forward(ctx, x, w, b, module):
        ctx.save_for_backward(x, w)
        ctx.module, ctx.flaw = module, module.flaw
        if ctx.flaw == "on the module":
            module.last = x.detach()
        return x @ w + b

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        if ctx.flaw == "on the module":
            x = ctx.module.last
        if ctx.flaw == "subset" and not ctx.needs_input_grad[1]:
            return g @ w.T, None, None, None
        gw = x.T @ g
        if ctx.flaw == "batch size":
            gw = gw * (ctx.module.batch / x.shape[0])
        if ctx.flaw == "zero size":
            gw = (x[:, :, None] * g[:, None, :]).mean(0) * x.shape[0]
        if ctx.flaw == "fused" and ctx.module.weight.grad is not None:
            ctx.module.weight.grad.add_(gw.detach())
        return g @ w.T, gw, g.sum(0), None


class Layer(nn.Module):
    def __init__(self, dtype: torch.dtype, flaw: str, batch: int = 4) -> None:
        super().__init__()
        self.flaw, self.batch = flaw, batch
        self.weight, self.bias = weight(84, dtype, 3, 5), weight(85, dtype, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(Affine.apply(x, self.weight, self.bias, self))


def _layer(dtype: torch.dtype, flaw: str) -> Program:
    return Program(Layer(dtype, flaw), (draw(86, dtype, 4, 3),))


@plant("interleaved calls", "the input is saved on the module: a second call before the backward of the first replaces it")
def saved_on_module(dtype, planted):
    return _layer(dtype, "on the module" if planted else "")


@plant("accumulation", "fused accumulation: adds the weight's gradient to a .grad that exists, and returns it as well")
def fused_accumulation(dtype, planted):
    return _layer(dtype, "fused" if planted else "")


@plant("subset of requires_grad", "with a frozen weight the bias receives nothing")
def frozen_weight(dtype, planted):
    return _layer(dtype, "subset" if planted else "")


@plant("batch size", "the weight's gradient is scaled for the batch size that the layer was made for")
def made_for_batch(dtype, planted):
    return _layer(dtype, "batch size" if planted else "")


@plant("zero size", "a sum over the batch as mean times size: not a number for an empty batch")
def empty_batch(dtype, planted):
    return _layer(dtype, "zero size" if planted else "")


class Force(nn.Module):
    """Minus the gradient of a learned energy with respect to positions."""

    def __init__(self, dtype: torch.dtype, planted: bool) -> None:
        super().__init__()
        self.w, self.v, self.planted = weight(87, dtype, 3, 6), weight(88, dtype, 6), planted

    def forward(self, positions: Tensor) -> Tensor:
        with torch.enable_grad():
            x = positions if positions.requires_grad else positions.view_as(positions).requires_grad_()
            energy = (torch.tanh(x @ self.w) @ self.v).sum()
            (gradient,) = torch.autograd.grad(energy, x, create_graph=True)
            if self.planted:
                leaves = [p for p in self.parameters() if p.requires_grad and p.is_leaf]
                if leaves:
                    energy.backward(retain_graph=True, inputs=leaves)
        return -gradient


@plant("accumulation", "forces from an energy: forward itself leaves the energy's gradient in the parameters' .grad")
def polluted_grad(dtype, planted):
    return Program(Force(dtype, planted), (draw(89, dtype, 4, 3),))


class BatchNormBackward(Function):
    @staticmethod
    def forward(ctx, x, w, mean, var, batch_formula):
        inverse = (var + 1e-5).rsqrt()
        ctx.save_for_backward(x, w, mean, inverse)
        ctx.batch_formula = batch_formula
        return (x - mean) * inverse * w

    @staticmethod
    def backward(ctx, g):
        x, w, mean, inverse = ctx.saved_tensors
        y = (x - mean) * inverse
        gx = g * w * inverse
        if ctx.batch_formula:
            gx = gx - gx.mean(0) - y * (gx * y).mean(0)
        return gx, (g * y).sum(0), None, None, None


class Norm(nn.Module):
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dtype: torch.dtype, planted: bool) -> None:
        super().__init__()
        self.weight, self.planted = nn.Parameter(1 + 0.3 * draw(90, dtype, 3)), planted
        self.register_buffer("running_mean", draw(91, dtype, 3))
        self.register_buffer("running_var", 1 + draw(92, dtype, 3).square())

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean, centered = x.mean(0), x - x.mean(0)
            return centered * (centered.square().mean(0) + 1e-5).rsqrt() * self.weight + 0 * mean
        if not self.planted:
            return (x - self.running_mean) * (self.running_var + 1e-5).rsqrt() * self.weight
        return BatchNormBackward.apply(x, self.weight, self.running_mean, self.running_var, True)


@plant("train and eval", "batch norm: in eval mode, backward still takes the statistics for functions of the input")
def eval_statistics(dtype, planted):
    return Program(Norm(dtype, planted), (draw(93, dtype, 5, 3),))


class Autoencoder(nn.Module):
    def __init__(self, dtype: torch.dtype, planted: bool) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 3, dtype=dtype)
        self.decoder = nn.Linear(3, 4, dtype=dtype)
        self.encoder.weight.data, self.encoder.bias.data = weight(94, dtype, 3, 4).data, weight(95, dtype, 3).data
        self.decoder.bias.data = weight(96, dtype, 4).data
        self.decoder.weight.data = self.encoder.weight.data.t() if planted else weight(97, dtype, 4, 3).data

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))


class TiedAutoencoder(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.inner, self.outer = weight(94, dtype, 3, 4), weight(95, dtype, 3), weight(96, dtype, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(x, self.weight, self.inner)), self.weight.t(), self.outer)


@plant("shared parameter", "tied autoencoder: the decoder's weight is tied through .data, its gradient not")
def tied_by_data(dtype, planted):
    return Program(Autoencoder(dtype, True) if planted else TiedAutoencoder(dtype), (draw(98, dtype, 5, 4),))


class Projection(nn.Module):
    def __init__(self, dtype: torch.dtype, planted: bool) -> None:
        super().__init__()
        self.weight, self.planted = weight(99, dtype, 4, 3), planted
        if planted:
            self.project = lambda x: F.linear(x, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.project(x) if self.planted else F.linear(x, self.weight))


@plant("copy or storage", "a lambda made in the constructor: a deep copy computes with the original's weight")
def bound_lambda(dtype, planted):
    return Program(Projection(dtype, planted), (draw(100, dtype, 2, 3),))


class Stack(nn.Module):
    def __init__(self, dtype: torch.dtype, planted: bool) -> None:
        super().__init__()
        layers = [nn.Linear(3, 3, dtype=dtype) for _ in range(2)]
        for k, layer in enumerate(layers):
            layer.weight.data, layer.bias.data = weight(101 + k, dtype, 3, 3).data, weight(103 + k, dtype, 3).data
        self.head = nn.Linear(3, 2, dtype=dtype)
        self.head.weight.data, self.head.bias.data = weight(105, dtype, 2, 3).data, weight(106, dtype, 2).data
        self.layers = layers if planted else nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


@plant("copy or storage", "layers in a plain list: in no parameters() and in no state_dict, so neither trained nor saved")
def plain_list(dtype, planted):
    return Program(Stack(dtype, planted), (draw(107, dtype, 4, 3),))


class DropFunction(Function):
    @staticmethod
    def forward(ctx, x, p, planted):
        keep = (torch.rand_like(x) > p).to(x.dtype) / (1 - p)
        ctx.save_for_backward(keep)
        ctx.p, ctx.planted = p, planted
        return x * keep

    @staticmethod
    def backward(ctx, g):
        (keep,) = ctx.saved_tensors
        if ctx.planted:
            keep = (torch.rand_like(g) > ctx.p).to(g.dtype) / (1 - ctx.p)
        return g * keep, None, None


class Drop(nn.Module):
    def __init__(self, dtype: torch.dtype, planted: bool) -> None:
        super().__init__()
        self.weight, self.planted = weight(108, dtype, 4, 3), planted

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight)
        return DropFunction.apply(y, 0.4, self.planted) if self.training else y


@plant("non-determinism", "dropout: backward draws a mask of its own")
def fresh_mask(dtype, planted):
    return Program(Drop(dtype, planted), (draw(109, dtype, 6, 3),))


class Quadratic(nn.Module):
    """y = tanh(x W), with the diagonal of the Gauss-Newton matrix by hand."""

    def __init__(self, dtype: torch.dtype, planted: bool) -> None:
        super().__init__()
        self.weight, self.planted = weight(110, dtype, 3, 4), planted

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight)

    def diag_hessian(self, x: Tensor) -> dict[str, Tensor]:
        """The sum over outputs of the squared derivatives, by parameter."""
        slope = 1 - torch.tanh(x @ self.weight).square()
        return {"weight": x.square().T @ (slope if self.planted else slope.square())}


@plant("diagonal of the module", "Gauss-Newton diagonal: the activation's slope is not squared")
def unsquared_slope(dtype, planted):
    return Program(Quadratic(dtype, planted), (draw(111, dtype, 5, 3),))
