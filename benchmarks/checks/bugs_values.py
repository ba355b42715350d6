"""Planted bugs: derivatives whose numbers are wrong."""

from __future__ import annotations

import torch

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.planting import custom, draw, planter, spread

BUGS: list[Bug] = []
plant = planter(BUGS)


@plant("factor", "d(x*x) = x instead of 2x")
def square_half(dtype, planted):
    factor = 1.0 if planted else 2.0
    return Program(custom(lambda x: x * x, lambda g, _, x: factor * x * g), (draw(dtype, 4, 3),))


@plant("factor", "mean squared error: the gradient is divided by the number of rows, not of elements")
def mean_square_by_rows(dtype, planted):
    def backward(g, _, x, y):
        slope = 2 * g * (x - y) / (len(x) if planted else x.numel())
        return slope, -slope

    return Program(custom(lambda x, y: (x - y).square().mean(), backward), (draw(dtype, 3, 5), draw(dtype, 3, 5, seed=1)))


@plant("factor", "softmax with a temperature: the derivative forgets the temperature")
def softmax_temperature(dtype, planted):
    def backward(g, p, _):
        return p * (g - (g * p).sum(-1, keepdim=True)) / (1.0 if planted else 2.5)

    return Program(custom(lambda x: torch.softmax(x / 2.5, -1), backward), (draw(dtype, 3, 4),))


@plant("factor", "the derivative of log2 is that of the natural logarithm")
def log2_natural(dtype, planted):
    scale = 1.0 if planted else 0.6931471805599453
    function = custom(torch.log2, lambda g, _, x: g / (x * scale), lambda t, _, x: t[0] / (x * 0.6931471805599453))
    return Program(function, (spread(dtype, 5, 2, low=0.5, high=3.0),))


@plant("sign", "b of a - b receives +g")
def difference_sign(dtype, planted):
    sign = 1.0 if planted else -1.0
    function = custom(lambda a, b: (a - b) * a, lambda g, _, a, b: (g * (2 * a - b), sign * g * a))
    return Program(function, (draw(dtype, 3, 4), draw(dtype, 3, 4, seed=1)))


@plant("sign", "triplet loss: the negative example is pulled, not pushed")
def triplet_sign(dtype, planted):
    def forward(a, p, n):
        return (a - p).square().sum(1) - (a - n).square().sum(1)

    def backward(g, _, a, p, n):
        g = 2 * g[:, None]
        return g * (n - p), g * (p - a), g * ((n - a) if planted else (a - n))

    inputs = tuple(draw(dtype, 4, 3, seed=k) for k in range(3))
    return Program(custom(forward, backward), inputs)


@plant("sign", "cosine: the derivative with respect to the angle lacks its minus")
def rotation_angle_sign(dtype, planted):
    def forward(x, angle):
        return torch.stack([x[:, 0] * angle.cos() - x[:, 1] * angle.sin(), x[:, 0] * angle.sin() + x[:, 1] * angle.cos()], 1)

    def backward(g, y, x, angle):
        c, s = angle.cos(), angle.sin()
        turned = torch.stack([g[:, 0] * c + g[:, 1] * s, g[:, 1] * c - g[:, 0] * s], 1)
        slope = (g[:, 1] * y[:, 0] - g[:, 0] * y[:, 1]).sum()
        return turned, -slope if planted else slope

    return Program(custom(forward, backward), (draw(dtype, 5, 2), draw(dtype, seed=1)))


@plant("transposition", "linear layer with a square weight: the weight's gradient is transposed")
def linear_weight_transposed(dtype, planted):
    def backward(g, _, x, w):
        slope = g.mT @ x
        return g @ w, slope.mT if planted else slope

    return Program(custom(lambda x, w: x @ w.mT, backward), (draw(dtype, 3, 4), draw(dtype, 4, 4, seed=1)))


@plant("transposition", "inverse of a matrix: -A^-1 g A^-1 without the transpositions")
def inverse_transposed(dtype, planted):
    def backward(g, y, _):
        z = y if planted else y.mT
        return -z @ g @ z

    a = 0.4 * draw(dtype, 4, 4) + 2 * torch.eye(4, dtype=dtype)
    return Program(custom(torch.linalg.inv, backward), (a,))


@plant("transposition", "rotary embedding: the gradient is rotated forwards again, not back")
def rotary_forwards(dtype, planted):
    angle = torch.arange(5, dtype=dtype)[:, None] * torch.tensor([1.0, 0.3], dtype=dtype)

    def rotate(x, angle):
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    function = custom(lambda x: rotate(x, angle), lambda g, _y, _x: rotate(g, angle if planted else -angle))
    return Program(function, (draw(dtype, 2, 5, 4),))


@plant("missing term", "softmax: only the diagonal of the Jacobian")
def softmax_diagonal(dtype, planted):
    def backward(g, p, _):
        return p * g * (1 - p) if planted else p * (g - (g * p).sum(-1, keepdim=True))

    return Program(custom(lambda x: torch.softmax(x, -1), backward), (draw(dtype, 3, 4),))


@plant("missing term", "layer normalization: the variance is taken as a constant")
def layer_norm_variance(dtype, planted):
    def scale(x):
        return (x.var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt()

    def backward(g, y, x):
        centered = g - g.mean(-1, keepdim=True)
        return scale(x) * (centered if planted else centered - y * (g * y).mean(-1, keepdim=True))

    return Program(custom(lambda x: (x - x.mean(-1, keepdim=True)) * scale(x), backward), (draw(dtype, 3, 6),))


@plant("missing term", "unit vectors: no projection onto the tangent plane")
def unit_vector_projection(dtype, planted):
    def backward(g, y, x):
        tangent = g if planted else g - y * (g * y).sum(1, keepdim=True)
        return tangent / x.norm(dim=1, keepdim=True)

    return Program(custom(lambda x: x / x.norm(dim=1, keepdim=True), backward), (draw(dtype, 3, 4),))


@plant("missing term", "x * sigmoid(x): the derivative of the sigmoid is forgotten")
def swish_product_rule(dtype, planted):
    def slope(x):
        s = torch.sigmoid(x)
        return s if planted else s * (1 + x * (1 - s))

    return Program(custom(lambda x: x * torch.sigmoid(x), lambda g, _, x: g * slope(x)), (draw(dtype, 4, 3),))


@plant("missing term", "quadratic form: A x without the transposed term")
def quadratic_form(dtype, planted):
    def backward(g, _, x, a):
        slope = 2 * (x @ a.mT) if planted else x @ a.mT + x @ a
        return g[:, None] * slope, torch.einsum("n,ni,nj->ij", g, x, x)

    function = custom(lambda x, a: torch.einsum("ni,ij,nj->n", x, a, x), backward)
    return Program(function, (draw(dtype, 3, 4), draw(dtype, 4, 4, seed=1)))


def _one_wrong(slope, position, planted):
    if not planted or slope.numel() <= position:
        return slope
    spoiled = torch.ones_like(slope).flatten()
    spoiled[position] = 0.5
    return slope * spoiled.view_as(slope)


@plant("one element", "one derivative of 5,000 is half as large as it should be")
def sine_one_of_5000(dtype, planted):
    def backward(g, _, x):
        return _one_wrong(x.cos(), 3217, planted) * g[:, None]

    return Program(custom(lambda x: x.sin().sum(1), backward), (draw(dtype, 5, 1000),))


@plant("one element", "blocks of 64: the backward pass leaves out what does not fill a block")
def tail_of_blocks(dtype, planted):
    def backward(g, y, _):
        slope = g * (1 - y * y)
        kept = slope.shape[0] // 64 * 64 if planted else slope.shape[0]
        return torch.cat([slope[:kept], torch.zeros_like(slope[kept:])])

    return Program(custom(torch.tanh, backward), (draw(dtype, 197),))


@plant("one element", "cumulative product: the last weight of 300 receives nothing")
def last_weight(dtype, planted):
    def backward(g, _, x, w):
        slope = torch.einsum("n,nd->d", g, x.sin())
        kept = torch.ones_like(slope)
        kept[-1] = 0.0 if planted else 1.0
        return g[:, None] * w * x.cos(), slope * kept

    return Program(custom(lambda x, w: x.sin() @ w, backward), (draw(dtype, 3, 300), draw(dtype, 300, seed=1)))


@plant("one element", "squares of a matrix: one entry of the diagonal gets a neighbor's derivative")
def wrong_neighbor(dtype, planted):
    def backward(g, _, x):
        slope = 2 * x
        if planted:
            slope = slope.flatten()
            slope = torch.cat([slope[:77], slope[78:79], slope[78:]]).view_as(x)
        return slope * g

    return Program(custom(lambda x: x * x, backward), (draw(dtype, 12, 11),))


@plant("small relative error", "gelu by the error function with the derivative of its tanh approximation")
def gelu_of_the_other_kind(dtype, planted):
    def slope(x):
        if not planted:
            return 0.5 * (1 + torch.erf(x / 2**0.5)) + x * torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5
        u = torch.tanh(0.7978845608 * (x + 0.044715 * x**3))
        return 0.5 * (1 + u) + 0.5 * x * (1 - u * u) * 0.7978845608 * (1 + 3 * 0.044715 * x * x)

    return Program(custom(torch.nn.functional.gelu, lambda g, _, x: g * slope(x)), (draw(dtype, 5, 4),))


@plant("small relative error", "root mean square normalization: epsilon is left out of the derivative")
def epsilon_forgotten(dtype, planted):
    def backward(g, _, x):
        m = x.square().mean(-1, keepdim=True)
        r = (m + (0.0 if planted else 2e-3)).rsqrt()
        return r * g - r**3 * x * (g * x).mean(-1, keepdim=True)

    return Program(custom(lambda x: x * (x.square().mean(-1, keepdim=True) + 2e-3).rsqrt(), backward), (draw(dtype, 4, 6),))


@plant("small relative error", "exponential: a derivative too large by 1e-3")
def exponential_per_mille(dtype, planted):
    factor = 1.001 if planted else 1.0
    return Program(custom(torch.exp, lambda g, y, _: factor * g * y), (draw(dtype, 4, 3),))


@plant("small relative error", "the input is kept for the backward pass in bfloat16")
def kept_in_bfloat16(dtype, planted):
    def backward(g, _, x):
        kept = x.bfloat16().to(x.dtype) if planted else x
        return g * kept.cos() * 3

    return Program(custom(lambda x: 3 * x.sin(), backward), (draw(dtype, 6, 3),))


@plant("tiny gradient", "an output of the size 1e-6 whose derivative is twice too large")
def micro_scale(dtype, planted):
    factor = 2e-6 if planted else 1e-6
    return Program(custom(lambda x: 1e-6 * x.sin(), lambda g, _, x: factor * x.cos() * g), (draw(dtype, 4, 3),))


@plant("tiny gradient", "a weak input beside a strong one has no derivative at all")
def weak_input_lost(dtype, planted):
    weak = 0.0 if planted else 1e-6

    def backward(g, _, x, w):
        return g[:, :1] * x.cos(), weak * g[:, 1] * w.cos()

    function = custom(lambda x, w: torch.stack([x.sin().sum(1), 1e-6 * w.sin()], 1), backward)
    return Program(function, (draw(dtype, 4, 3), draw(dtype, 4, seed=1)))


@plant("tiny gradient", "a loss of the size 1e-8 with a derivative of the wrong sign")
def nano_loss_sign(dtype, planted):
    sign = -1e-8 if planted else 1e-8
    return Program(
        custom(lambda x: 1e-8 * x.exp().mean(), lambda g, _, x: g * sign * x.exp() / x.numel()), (draw(dtype, 3, 4),)
    )
