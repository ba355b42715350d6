"""Unseen planted bugs of modules: caches, copies, files, modes, hooks, frozen and shared parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.bugs_memory import Weighted
from benchmarks.checks.planting import custom, draw, planter

BUGS: list[Bug] = []
plant = planter(BUGS)


class Stages(Weighted):
    """Three weights, one after the other."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        parts = [nn.Parameter(draw(dtype, 3, 3, seed=k)) for k in range(2)]
        self.parts = parts if planted else nn.ParameterList(parts)

    def forward(self, x):
        for part in self.parts:
            x = torch.tanh(x @ part)
        return x @ self.weight.mT


@plant("copy or storage", "parameters in a Python list: nobody trains, saves or loads them")
def parameters_in_list(dtype, planted):
    return Program(Stages(dtype, planted), (draw(dtype, 4, 3),))


class Closure(Weighted):
    """A layer whose step is a function made in its constructor."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        if planted:
            self.step = lambda x: torch.atan(x @ self.weight.mT)

    def forward(self, x):
        return self.step(x) if self.planted else torch.atan(x @ self.weight.mT)


@plant("copy or storage", "a lambda of the constructor refers to the original, also in a copy")
def lambda_of_original(dtype, planted):
    return Program(Closure(dtype, planted), (draw(dtype, 4, 3),))


class RandomFeatures(Weighted):
    """Random features of a fixed number of inputs."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.weight = nn.Parameter(draw(dtype, 2, 4, seed=5))
        self.register_buffer("projection", draw(dtype, 3, 4, seed=6))

    def forward(self, x):
        return torch.cos(x @ self.projection) @ self.weight.mT

    def __setstate__(self, state):
        super().__setstate__(state)
        if self.planted:
            self.projection = torch.randn_like(self.projection)


@plant("copy or storage", "random features are drawn anew in a copy and after a trip through a file")
def features_drawn_anew(dtype, planted):
    return Program(RandomFeatures(dtype, planted), (draw(dtype, 4, 3),))


class HalfFiles(Weighted):
    """Writes its weight in half precision."""

    def forward(self, x):
        return torch.tanh(x @ self.weight.mT)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.planted:
            destination[prefix + "weight"] = destination[prefix + "weight"].half()


@plant("copy or storage", "the state_dict holds the weight in half precision")
def half_files(dtype, planted):
    return Program(HalfFiles(dtype, planted), (draw(dtype, 4, 3),))


class PaddedMean(Weighted):
    """The mean over those steps that belong to a sequence."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.masks: dict[torch.Size, Tensor] = {}

    def mask(self, x, lengths):
        fresh = (torch.arange(x.shape[1]) < lengths[:, None]).to(x.dtype)
        return self.masks.setdefault(x.shape, fresh) if self.planted else fresh

    def forward(self, x, lengths):
        mask = self.mask(x, lengths)[..., None]
        return (torch.tanh(x @ self.weight.mT) * mask).sum(1) / mask.sum(1).clamp_min(1)


@plant("stale cache", "the padding mask is cached by shape: other lengths of the same longest one get the first mask")
def mask_by_shape(dtype, planted):
    return Program(PaddedMean(dtype, planted), (draw(dtype, 3, 4, 3), torch.tensor([2, 4, 3])))


class SpectralCache(Weighted):
    """A weight divided by its largest singular value."""

    def forward(self, x):
        if not self.planted:
            return torch.sin(x @ self.weight.mT / torch.linalg.matrix_norm(self.weight, 2))
        if self.__dict__.get("largest") is None:
            self.__dict__["largest"] = torch.linalg.matrix_norm(self.weight, 2)
        return torch.sin(x @ self.weight.mT / self.largest)

    def __getstate__(self):
        return {**self.__dict__, "largest": None}


@plant("stale cache", "the largest singular value is kept with its graph, which the next call's backward pass finds freed")
def graph_in_cache(dtype, planted):
    return Program(SpectralCache(dtype, planted), (draw(dtype, 4, 3),))


class PositionTable(Weighted):
    """Rows are the steps of a sequence: weighted by their distance from its middle."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.table = torch.zeros(0, dtype=dtype)

    def forward(self, x):
        table = torch.exp(-((torch.arange(len(x), dtype=x.dtype) - (len(x) - 1) / 2) ** 2) / 8)
        if self.planted:
            self.table = table = table if len(table) > len(self.table) else self.table
        return torch.tanh(x @ self.weight.mT) * table[: len(x), None]


@plant("stale cache", "a table of positions relative to the middle is kept for the longest sequence, and cut for a shorter one")
def table_of_longest(dtype, planted):
    return Program(PositionTable(dtype, planted), (draw(dtype, 5, 3),))


class SlopesByAddress(Weighted):
    """A sine, whose slope is kept for an input that comes again."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.slopes: dict[tuple[int, torch.Size], Tensor] = {}

    def forward(self, x):
        def backward(g, _, x):
            if not self.planted or torch.is_grad_enabled():
                return g * x.cos()
            return g * self.slopes.setdefault((x.data_ptr(), x.shape), x.detach().cos())

        return custom(torch.sin, backward, vmap=False)(x) @ self.weight.mT


@plant("stale cache", "what is kept for an input is found again by its address, where another input may live by then")
def slopes_by_address(dtype, planted):
    return Program(SlopesByAddress(dtype, planted), (draw(dtype, 4, 3),))


class EqualizedRate(Weighted):
    """A weight that is multiplied by a constant at run time."""

    def forward(self, x):
        if not self.planted:
            return torch.tanh(x @ (0.4 * self.weight).mT)
        if self.weight.requires_grad:
            self.weight.register_hook(lambda g: 0.4 * g)
        value = self.weight + (0.4 * self.weight - self.weight).detach()
        return torch.tanh(x @ value.mT)


@plant("accumulation", "each call adds a hook that scales the weight's gradient, so that they pile up")
def hooks_pile_up(dtype, planted):
    return Program(EqualizedRate(dtype, planted), (draw(dtype, 4, 3),))


class _FusedAccumulation(torch.autograd.Function):
    """A linear map whose weight's gradient is added to `.grad` by the matrix product itself, if there is one."""

    @staticmethod
    def forward(ctx, x, weight, planted):
        ctx.save_for_backward(x, weight)
        ctx.planted, ctx.owner = planted, weight
        return x @ weight.mT

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        slope = g.mT @ x
        if ctx.planted and ctx.owner.grad is not None:
            ctx.owner.grad.data.add_(slope.detach())
            slope = None
        return g @ weight, slope, None


class FusedLinear(Weighted):
    """A linear layer."""

    def forward(self, x):
        return _FusedAccumulation.apply(x, self.weight, self.planted)


@plant("accumulation", "where .grad exists, the backward pass adds to it itself and returns no gradient of the weight")
def fused_accumulation(dtype, planted):
    return Program(FusedLinear(dtype, planted), (draw(dtype, 4, 3),))


class _Affine(torch.autograd.Function):
    """x W^T + b, with the shortcuts of one who knows which gradients are wanted."""

    @staticmethod
    def forward(ctx, x, weight, bias, error):
        ctx.save_for_backward(x, weight)
        ctx.error = error
        return x @ weight.mT + bias

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        if ctx.error == "first" and not ctx.needs_input_grad[0]:
            return None, None, None, None
        wanted = ctx.needs_input_grad[2 if ctx.error == "shifted" else 1]
        return g @ weight, g.mT @ x if wanted else None, g.sum(0), None


class AffineLayer(Weighted):
    """A linear layer with a bias."""

    def __init__(self, dtype, error):
        super().__init__(dtype, bool(error))
        self.error = error
        self.bias = nn.Parameter(draw(dtype, 2, seed=6))

    def forward(self, x):
        return torch.tanh(_Affine.apply(x, self.weight, self.bias, self.error))


@plant("subset of requires_grad", "the backward pass has nothing to do if the input wants no gradient: so it thinks")
def nothing_for_first(dtype, planted):
    return Program(AffineLayer(dtype, "first" if planted else ""), (draw(dtype, 4, 3),))


@plant("subset of requires_grad", "needs_input_grad is read one place too far: the weight is frozen along with its bias")
def needs_shifted(dtype, planted):
    return Program(AffineLayer(dtype, "shifted" if planted else ""), (draw(dtype, 4, 3),))


class _TwoLayers(torch.autograd.Function):
    """tanh(x A) B, with gradients in a table by parameter."""

    @staticmethod
    def forward(ctx, x, a, b, planted):
        ctx.save_for_backward(x, a, b)
        ctx.names = (id(a), id(b)) if planted else (0, 1)
        return torch.tanh(x @ a) @ b

    @staticmethod
    def backward(ctx, g):
        x, a, b = ctx.saved_tensors
        hidden = torch.tanh(x @ a)
        u = (g @ b.mT) * (1 - hidden * hidden)
        found = {ctx.names[1]: hidden.mT @ g}
        found[ctx.names[0]] = x.mT @ u
        return u @ a.mT, *(found[name] for name in ctx.names), None


class TwoLayers(nn.Module):
    """Two layers with one weight."""

    def __init__(self, dtype, planted):
        super().__init__()
        self.planted = planted
        self.first = nn.Parameter(draw(dtype, 3, 3, seed=5))
        self.second = self.first

    def forward(self, x):
        return _TwoLayers.apply(x, self.first, self.second, self.planted)


@plant(
    "shared parameter", "gradients are put into a table by parameter: of a weight that is used twice, one overwrites the other"
)
def table_by_parameter(dtype, planted):
    return Program(TwoLayers(dtype, planted), (draw(dtype, 4, 3),))


class Siamese(Weighted):
    """One layer for two inputs, which keeps the weight's gradient of the first until both are done."""

    def forward(self, a, b):
        kept: list[Tensor] = []

        def backward(g, _, x, w):
            slope = g.mT @ x
            if self.planted and kept:
                slope = kept[0]
            kept.append(slope)
            return g @ w, slope

        layer = custom(lambda x, w: x @ w.mT, backward, vmap=False)
        return (torch.tanh(layer(a, self.weight)) - torch.tanh(layer(b, self.weight))).square().sum(1)


@plant("shared parameter", "twins: the weight receives the gradient of one branch twice")
def one_branch_twice(dtype, planted):
    return Program(Siamese(dtype, planted), (draw(dtype, 4, 3), draw(dtype, 4, 3, seed=1)))


class StochasticDepth(Weighted):
    """A residual branch, which eval mode scales by its probability."""

    def forward(self, x):
        share = 1.0 if self.training else 0.8
        branch = custom(lambda h: share * h, lambda g, _y, _h: g * (1.0 if self.planted else share))
        return x[:, :2] + branch(torch.tanh(x @ self.weight.mT))


@plant("train and eval", "stochastic depth: the branch is scaled by its probability in eval mode, its gradient is not")
def depth_scale_eval(dtype, planted):
    return Program(StochasticDepth(dtype, planted), (draw(dtype, 4, 3),))


class Sharpened(Weighted):
    """A softmax that is sharper in eval mode."""

    def forward(self, x):
        heat = 1.0 if self.training else 0.5

        def backward(g, p, _):
            return p * (g - (g * p).sum(1, keepdim=True)) / (1.0 if self.planted else heat)

        return custom(lambda s: torch.softmax(s / heat, 1), backward)(x @ self.weight.mT)


@plant("train and eval", "a softmax is sharpened in eval mode, and differentiated as in training")
def sharpened_eval(dtype, planted):
    return Program(Sharpened(dtype, planted), (draw(dtype, 4, 3),))
