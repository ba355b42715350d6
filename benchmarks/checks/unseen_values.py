"""Unseen planted bugs of formulas: losses, activations, and small linear algebra with a wrong derivative."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.planting import custom, draw, planter, spread

BUGS: list[Bug] = []
plant = planter(BUGS)


def one_hot(target: Tensor, x: Tensor) -> Tensor:
    """Rows of zeros with a one, like the rows of `x`."""
    return (target[:, None] == torch.arange(x.shape[1])).to(x.dtype)


@plant("factor", "distillation at temperature T: the loss is multiplied by T^2, its derivative is not")
def distillation_temperature(dtype, planted):
    heat = 3.0

    def forward(student, teacher):
        p = torch.softmax(teacher / heat, 1)
        return -(heat**2) * (p * torch.log_softmax(student / heat, 1)).sum(1)

    def backward(g, _, student, teacher):
        p, q = torch.softmax(teacher / heat, 1), torch.log_softmax(student / heat, 1)
        own = q.exp() - p
        other = -p * (q - (p * q).sum(1, keepdim=True))
        scale = g[:, None] * (1 / heat if planted else heat)
        return scale * own, g[:, None] * heat * other

    return Program(custom(forward, backward), (draw(dtype, 4, 5), draw(dtype, 4, 5, seed=1)))


@plant("factor", "average pooling that does not count its padding: the derivative divides by the whole window at the border")
def pooling_border(dtype, planted):
    def counts(x):
        ones = torch.ones(1, 1, x.shape[1], dtype=x.dtype)
        return nn.functional.avg_pool1d(ones, 3, 2, 1, count_include_pad=True)[0, 0]

    def forward(x):
        return nn.functional.avg_pool1d(x[:, None], 3, 2, 1)[:, 0] / counts(x)

    def backward(g, _, x):
        g = g if planted else g / counts(x)
        kernel, odd = torch.full((1, 1, 3), 1 / 3, dtype=x.dtype), (x.shape[1] - 1) % 2
        return nn.functional.conv_transpose1d(g[:, None], kernel, stride=2, padding=1, output_padding=odd)[:, 0]

    return Program(custom(forward, backward), (draw(dtype, 3, 7),))


@plant("sign", "cross product: the two factors of the second gradient are in the wrong order")
def cross_product_order(dtype, planted):
    def backward(g, _, a, b):
        return torch.linalg.cross(b, g), torch.linalg.cross(a, g) if planted else torch.linalg.cross(g, a)

    return Program(custom(torch.linalg.cross, backward), (draw(dtype, 4, 3), draw(dtype, 4, 3, seed=1)))


@plant("sign", "Gaussian likelihood: the derivative with respect to the logarithm of the variance is turned around")
def likelihood_variance(dtype, planted):
    def forward(x, mean, log_variance):
        return 0.5 * (log_variance + (x - mean) ** 2 * (-log_variance).exp())

    def backward(g, _, x, mean, log_variance):
        z = (x - mean) * (-log_variance).exp()
        slope = 0.5 * (1 - z * (x - mean))
        return g * z, -g * z, g * (-slope if planted else slope)

    return Program(custom(forward, backward), tuple(draw(dtype, 4, 3, seed=k) for k in range(3)))


@plant("transposition", "solution of A x = b: the gradient of b is A^-1 g instead of A^-T g")
def solve_not_transposed(dtype, planted):
    def backward(g, x, a, b):
        slope = torch.linalg.solve(a if planted else a.mT, g)
        return -slope @ x.mT, slope

    a = draw(dtype, 4, 4) + 4 * torch.eye(4, dtype=dtype)
    return Program(custom(torch.linalg.solve, backward), (a, draw(dtype, 4, 2, seed=1)))


@plant("transposition", "pixel shuffle: the backward pass takes the rows of a block for its columns")
def shuffle_blocks(dtype, planted):
    def forward(x):
        return nn.functional.pixel_shuffle(x.sin(), 2)

    def backward(g, _, x):
        g = nn.functional.pixel_unshuffle(g, 2)
        n, c, h, w = g.shape
        if planted:
            g = g.view(n, c // 4, 2, 2, h, w).transpose(2, 3).reshape(n, c, h, w)
        return g * x.cos()

    return Program(custom(forward, backward, vmap=False), (draw(dtype, 2, 4, 3, 2),))


@plant("missing term", "focal loss: the factor (1 - p)^2 is taken for a constant")
def focal_factor(dtype, planted):
    def backward(g, _, x):
        s = torch.sigmoid(x)
        slope = -((1 - s) ** 3)
        if not planted:
            slope = slope + 2 * (1 - s) ** 2 * s * nn.functional.logsigmoid(x)
        return g * slope

    return Program(
        custom(lambda x: -((1 - torch.sigmoid(x)) ** 2) * nn.functional.logsigmoid(x), backward), (draw(dtype, 5, 3),)
    )


@plant("missing term", "label smoothing: the derivative knows the hard label alone, the share of the other classes is left out")
def smoothing_share(dtype, planted):
    share = 0.1

    def targets(x, target):
        return (1 - share) * one_hot(target, x) + share / x.shape[1]

    def backward(g, _, x, target):
        wanted = (1 - share) * one_hot(target, x) if planted else targets(x, target)
        return g[:, None] * (torch.softmax(x, 1) - wanted), None

    function = custom(lambda x, target: -(targets(x, target) * torch.log_softmax(x, 1)).sum(1), backward)
    return Program(function, (draw(dtype, 5, 4), torch.tensor([0, 3, 1, 2, 3])))


@plant("one element", "reflected padding: on the right, what is reflected is given to the neighbor of its source")
def reflection_right(dtype, planted):
    def reflected(x):
        return nn.functional.pad(x[:, None], (2, 2), mode="reflect")[:, 0]

    def backward(g, _, x):
        g = g * reflected(x).cos()
        inner, left, right = g[:, 2:-2], g[:, :2].flip(1), g[:, -2:].flip(1)
        shift = 0 if planted else 1
        length = x.shape[1]
        return inner + nn.functional.pad(left, (1, length - 3)) + nn.functional.pad(right, (length - 2 - shift, shift))

    return Program(custom(lambda x: reflected(x).sin(), backward), (draw(dtype, 3, 8),))


@plant("one element", "reversed cumulative sum in chunks of 64: the last element of each chunk goes without the carry")
def carry_at_edges(dtype, planted):
    def backward(g, _, x):
        total = g.flip(1).cumsum(1).flip(1)
        edge = torch.arange(1, x.shape[1] + 1) % 64 == 0
        return torch.where(edge, g, total) if planted else total

    return Program(custom(lambda x: x.cumsum(1), backward), (draw(dtype, 2, 200),))


@plant("one element", "a band matrix: the product's gradient runs over the upper diagonal one step short")
def band_end(dtype, planted):
    def forward(main, upper, x):
        return main * x + nn.functional.pad(upper * x[1:], (0, 1))

    def backward(g, _, main, upper, x):
        inner = g[:-1] * x[1:]
        if planted:
            inner = torch.cat([inner[:-1], torch.zeros_like(inner[-1:])])
        return g * x, inner, g * main + nn.functional.pad(g[:-1] * upper, (1, 0))

    return Program(custom(forward, backward, vmap=False), (draw(dtype, 40), draw(dtype, 39, seed=1), draw(dtype, 40, seed=2)))


@plant("small relative error", "the sigmoid's derivative is looked up in a table of 4,096 entries, without interpolation")
def slope_from_table(dtype, planted):
    def backward(g, y, x):
        if not planted:
            return g * y * (1 - y)
        cells = ((x.detach() + 8) * 256).floor().clamp(0, 4095)
        s = torch.sigmoid(cells / 256 - 8)
        return g * s * (1 - s)

    return Program(custom(torch.sigmoid, backward), (draw(dtype, 4, 3),))


@plant("small relative error", "rows of 400 are divided by the unbiased deviation; the derivative takes it for the biased one")
def unbiased_deviation(dtype, planted):
    def forward(x):
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)

    def backward(g, y, x):
        count = x.shape[1] - (0 if planted else 1)
        slope = g - g.mean(1, keepdim=True) - y * (g * y).sum(1, keepdim=True) / count
        return slope / x.std(1, keepdim=True, unbiased=not planted)

    return Program(custom(forward, backward), (draw(dtype, 2, 400),))


@plant("tiny gradient", "beside the loss, a regularizer of the weight 1e-7 is returned, whose derivative is left out")
def z_loss(dtype, planted):
    class Losses(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, target):
            ctx.save_for_backward(x, target)
            total = x.logsumexp(1)
            return (total - x.gather(1, target[:, None])[:, 0]).mean(), 1e-7 * total.square().mean()

        @staticmethod
        def backward(ctx, g, h):
            x, target = ctx.saved_tensors
            share = torch.softmax(x, 1)
            slope = g * (share - one_hot(target, x)) / len(x)
            if not planted:
                slope = slope + h * 2e-7 * x.logsumexp(1, keepdim=True) * share / len(x)
            return slope, None

    return Program(Losses.apply, (draw(dtype, 5, 4), torch.tensor([0, 3, 1, 2, 3])))


@plant("tiny gradient", "slopes below 1e-7 are flushed to zero, and all slopes here are smaller")
def flushed_to_zero(dtype, planted):
    def backward(g, _, x):
        slope = 1e-9 * x.cos()
        return g * (torch.where(slope.abs() < 1e-7, torch.zeros_like(slope), slope) if planted else slope)

    return Program(custom(lambda x: 1e-9 * x.sin(), backward), (draw(dtype, 4, 3),))


@plant("region of x", "softplus with beta 2: the derivative is taken to be one from x = 2 on")
def softplus_threshold(dtype, planted):
    def backward(g, _, x):
        slope = torch.sigmoid(2 * x)
        return g * (torch.where(x > 2, torch.ones_like(x), slope) if planted else slope)

    function = custom(lambda x: nn.functional.softplus(2 * x, 1.0, 50.0) / 2, backward)
    return Program(function, (spread(dtype, 4, 3, low=-2.0, high=1.5),))


@plant("region of x", "sin(x)/x: near zero a series stands in for the derivative, and its second term has the wrong sign")
def sinc_series(dtype, planted):
    def forward(x):
        near = x.abs() < 0.3
        far = torch.where(near, torch.ones_like(x), x)
        s = x * x
        return torch.where(near, 1 - s / 6 * (1 - s / 20 * (1 - s / 42 * (1 - s / 72 * (1 - s / 110)))), far.sin() / far)

    def backward(g, _, x):
        near = x.abs() < 0.3
        far = torch.where(near, torch.ones_like(x), x)
        s = x * x
        sign = -1 if planted else 1
        series = -x / 3 * (1 - sign * s / 10 * (1 - s / 28 * (1 - s / 54 * (1 - s / 88 * (1 - s / 130)))))
        return g * torch.where(near, series, (far.cos() - far.sin() / far) / far)

    x = spread(dtype, 4, 3, low=0.6, high=3.0)
    return Program(custom(forward, backward), (x * torch.tensor([1.0, -1.0, 1.0], dtype=dtype),))


@plant("region of x", "hard swish: the upper bound of the slope is forgotten, and no given x is above it")
def hard_swish_above(dtype, planted):
    def backward(g, _, x):
        slope = torch.where(x < -3, torch.zeros_like(x), x / 3 + 0.5)
        return g * (slope if planted else torch.where(x > 3, torch.ones_like(x), slope))

    return Program(custom(nn.functional.hardswish, backward), (spread(dtype, 4, 3, low=-2.5, high=2.5),))


@plant("region of x", "log cosh: beyond 5 on either side the derivative is one, also for negative x")
def log_cosh_left(dtype, planted):
    def backward(g, _, x):
        slope = torch.tanh(x)
        return g * (torch.where(x.abs() > 5, torch.ones_like(x), slope) if planted else slope)

    function = custom(lambda x: x.abs() + torch.log1p(torch.exp(-2 * x.abs())) - 0.6931471805599453, backward)
    return Program(function, (spread(dtype, 5, 3, low=-2.5, high=2.5),))


@plant("tie or kink", "the larger of two: where both are equal, each receives the whole gradient")
def larger_of_two(dtype, planted):
    def backward(g, _, a, b):
        first = (a >= b).to(g.dtype) if planted else (a > b).to(g.dtype) + 0.5 * (a == b)
        second = (b >= a).to(g.dtype) if planted else 1 - first
        return g * first, g * second

    a, b = draw(dtype, 4, 3), draw(dtype, 4, 3, seed=1)
    b[0, 1], b[2, 2] = a[0, 1], a[2, 2]
    return Program(custom(torch.maximum, backward), (a, b))


@plant("tie or kink", "distances of all pairs: the derivative of a point's distance from itself is zero by zero")
def distance_of_itself(dtype, planted):
    def backward(g, y, x):
        apart = x[:, None] - x
        length = y[..., None] if planted else torch.where(y > 0, y, torch.ones_like(y))[..., None]
        slope = g[..., None] * apart / length
        return slope.sum(1) - slope.sum(0)

    def forward(x):
        squares = (x[:, None] - x).square().sum(-1)
        return torch.where(squares > 0, squares, torch.zeros_like(squares)).sqrt()

    return Program(custom(forward, backward), (draw(dtype, 4, 3),))


@plant("tie or kink", "sum of the two largest of a row: all elements that reach the second largest value receive the gradient")
def two_largest(dtype, planted):
    def backward(g, _, x):
        values, index = x.topk(2, 1)
        mask = (x >= values[:, -1:]).to(x.dtype) if planted else torch.zeros_like(x).scatter(1, index, 1.0)
        return g[:, None] * mask

    x = torch.tensor([[3.0, 1.0, 1.0, -2.0], [0.5, -1.0, 2.0, 1.0], [1.5, 0.25, 1.5, 1.5]], dtype=dtype)
    return Program(custom(lambda x: x.topk(2, 1).values.sum(1), backward, vmap=False), (x,))
