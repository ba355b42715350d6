"""No false zero: whatever autograd finds at random points is in the pattern that one run gave; and no entry too many where the
structure is plain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.autodiff.dependence.function import dependence
from hesse.core.errors import LeafError, NonScalarError, UnsupportedError
from hesse.rules.sparsity.forms import sparsity_rules
from hesse.sparse import sparsity

REAL = torch.float64
POINTS = 4
INDEX = torch.tensor([3, 0, 0, 2])
MASK = torch.tensor([True, False, True, True, False, True])
A = torch.randn(4, 6, dtype=REAL, generator=torch.Generator().manual_seed(0))
KERNEL = torch.randn(4, 2, 3, 2, dtype=REAL, generator=torch.Generator().manual_seed(1))


class StraightThrough(torch.autograd.Function):
    """Rounds, and says that its slope is one."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g


class Rounded(torch.autograd.Function):
    """The same, for transforms."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g


class Backwards(torch.autograd.Function):
    """Doubles, and pulls back in reverse order."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return 2 * g.flip(0)


def burgers(u: Tensor) -> Tensor:
    right, left = F.pad(u[1:], (0, 1)), F.pad(u[:-1], (1, 0))
    return -u * (right - left) + 0.1 * (right - 2 * u + left)


def in_place(x: Tensor) -> Tensor:
    y = torch.zeros(7, dtype=x.dtype)
    y[:3] = x[:3] ** 2
    y[3] = x[4] * x[0]
    y[4:].add_(x[1:4])
    y.mul_(2)
    y[::2] *= x[5]
    return y


def filled(x: Tensor) -> Tensor:
    return torch.zeros(4, dtype=x.dtype).fill_(x[1]) * x + torch.full_like(x, 2.0)


def loop(x: Tensor) -> Tensor:
    state, out = x[0], []
    for element in x[1:]:
        state = (state * element).tanh()
        out.append(state)
    return torch.stack(out)


def attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, 2 * x, x.flip(-1), is_causal=True)


EXACT = {  # name: function, shape of x; the pattern holds nothing but what some point has
    "pointwise": (lambda x: x.sin() * x + 1, (5,)),
    "Burgers": (burgers, (9,)),
    "in place": (in_place, (6,)),
    "loop": (loop, (5,)),
    "fill_": (filled, (4,)),
    "rows of a softmax": (lambda x: x.softmax(1), (3, 4)),
    "sum": (lambda x: x.sum(0), (3, 4)),
    "mean of all": (lambda x: x.mean(), (3, 2)),
    "matrix product": (lambda x: x @ x.T, (4, 3)),
    "cumsum": (lambda x: x.cumsum(1), (2, 5)),
    "linear map": (lambda x: A @ x, (6,)),
    "gather": (lambda x: x.gather(0, INDEX), (5,)),
    "index": (lambda x: x[INDEX, 1], (4, 3)),
    "index_add": (lambda x: torch.zeros(5, dtype=REAL).index_add(0, INDEX, x), (4,)),
    "scatter_add": (lambda x: torch.zeros(5, dtype=REAL).scatter_add(0, INDEX, x), (4,)),
    "index_put": (lambda x: torch.zeros(6, dtype=REAL).index_put((INDEX[1:],), x, accumulate=True), (3,)),
    "mask": (lambda x: torch.where(MASK, x, x.flip(0) ** 2), (6,)),
    "masked_fill": (lambda x: x.masked_fill(MASK, 0.0), (6,)),
    "views": (lambda x: x.view(2, 3, 2).permute(2, 0, 1)[..., 1:].flatten().roll(1), (12,)),
    "unfold": (lambda x: x.unfold(0, 3, 2).prod(1), (9,)),
    "complex": (lambda x: torch.view_as_complex(x).abs(), (4, 2)),
    "cdist": (lambda x: torch.cdist(x[:2], x[2:]), (5, 3)),
    "fft": (lambda x: torch.fft.rfft(x).abs(), (3, 5)),
    "inverse": (lambda x: torch.linalg.inv(x + 4 * torch.eye(2, dtype=REAL)), (3, 2, 2)),
    "layer_norm": (lambda x: F.layer_norm(x, (4,)), (3, 4)),
    "concatenation": (lambda x: torch.cat([x[2:], x.square()]), (5,)),
    "average pool": (lambda x: F.avg_pool1d(x, 2), (2, 3, 6)),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, (2, 3)), (1, 2, 5, 4)),
    "triangle": (lambda x: x.triu(1) @ torch.ones(4, 2, dtype=REAL), (3, 4)),
    "embedding": (lambda x: F.embedding(INDEX, x), (5, 3)),
    "straight through": (StraightThrough.apply, (5,)),
    "backwards": (Backwards.apply, (5,)),
    "group norm": (lambda x: F.group_norm(x, 2), (2, 4, 3)),
    "interpolation": (lambda x: F.interpolate(x, scale_factor=2), (1, 2, 4)),
    "expand": (lambda x: x.expand(3, 4) * torch.arange(1.0, 4.0, dtype=REAL)[:, None], (4,)),
    "convolution": (lambda x: F.conv2d(x, KERNEL, stride=(2, 1), padding=1, groups=2), (1, 4, 5, 4)),
    "transposed convolution": (lambda x: F.conv_transpose2d(x, KERNEL, stride=2, padding=1, groups=2), (1, 4, 3, 3)),
}
COVERED = {  # a path or an order may change from point to point, or entries cancel
    "sort": (lambda x: x.sort(0)[0], (5, 2)),
    "topk": (lambda x: x.topk(2)[0], (3, 4)),
    "max": (lambda x: x.max(1)[0], (3, 4)),
    "argmax index": (lambda x: x[x.argmax()[None]] * x, (5,)),
    "max_pool": (lambda x: F.max_pool2d(x, 2), (1, 2, 4, 6)),
    "where": (lambda x: torch.where(x > 0, x, x.flip(0)), (6,)),
    "clamp": (lambda x: x.clamp(-0.5, 0.5), (6,)),
    "relu": (F.relu, (6,)),
    "sorted by another": (lambda x: x[0][x[1].argsort()], (2, 5)),
    "attention": (attention, (1, 2, 4, 3)),
    "median": (lambda x: x.median(0)[0], (5, 2)),
    "cummax": (lambda x: x.cummax(0)[0], (5,)),
    "svd": (torch.linalg.svdvals, (2, 3, 3)),
    "cholesky": (lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(3, dtype=REAL)), (2, 3, 3)),
    "solve": (lambda x: torch.linalg.solve(x[..., :3] + 5 * torch.eye(3, dtype=REAL), x[..., 3:]), (2, 3, 5)),
    "eigvalsh": (lambda x: torch.linalg.eigvalsh(x + x.mT), (2, 3, 3)),
    "batch norm": (lambda x: F.batch_norm(x, None, None, training=True), (4, 3)),
    "loss": (lambda x: F.cross_entropy(x, torch.tensor([1, 0, 2])), (3, 4)),
    "mse": (lambda x: F.mse_loss(x, 2 * x.flip(0), reduction="none"), (4,)),
    "norm": (lambda x: x.norm(dim=1), (3, 2)),
    "var": (lambda x: x.var(0), (3, 2)),
    "logsumexp": (lambda x: x.logsumexp(1), (3, 4)),
    "instance norm": (F.instance_norm, (2, 3, 5)),
    "grid_sample": (lambda x: F.grid_sample(x[:, :, :3], x[:, :2, 3:].permute(0, 2, 3, 1), align_corners=False), (1, 2, 5, 3)),
    "prod": (lambda x: x.prod(0), (3, 2)),
    "cumprod": (lambda x: x.cumprod(0), (4,)),
    "rounded": (lambda x: x.round() * x, (5,)),
    "detached": (lambda x: x.detach().flip(0) * x, (5,)),
    "bilinear": (lambda x: F.interpolate(x, size=7, mode="linear"), (1, 2, 4)),
    "lstm": (nn.LSTM(3, 2, dtype=REAL), (4, 1, 3)),
    "unique sums": (lambda x: torch.einsum("ij,jk->ik", x, x), (3, 3)),
    "scatter by data": (lambda x: torch.zeros(5, dtype=REAL).index_add(0, x.argsort(), x), (5,)),
    "checkpoint": (lambda x: torch.utils.checkpoint.checkpoint(lambda t: t.sin() * t.flip(0), x, use_reentrant=False), (4,)),
    "vmap": (torch.func.vmap(lambda row: row.cumsum(0) * row[0]), (3, 4)),
    "jvp inside": (lambda x: torch.func.jvp(torch.sin, (x,), (x.flip(0),))[1], (4,)),
    "grad inside": (lambda x: torch.func.grad(lambda t: (t[1:] * t[:-1]).sum())(x), (5,)),
}


def point(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, dtype=REAL, generator=torch.Generator().manual_seed(seed))


def jacobian(f, x: Tensor) -> Tensor:
    """Row by row, by plain autograd."""
    x = x.clone().requires_grad_()
    y = f(x)
    y = y[0] if isinstance(y, tuple) else y
    rows = [torch.autograd.grad(e, x, retain_graph=True, allow_unused=True)[0] for e in y.reshape(-1)]
    return torch.stack([torch.zeros_like(x) if r is None else r for r in rows]).flatten(1)


def pattern(f, x: Tensor, **options) -> Tensor:
    g = (lambda t: f(t)[0]) if isinstance(f, nn.LSTM) else f
    return torch.from_numpy(dependence(g, x, "a pattern", **options).matrix.toarray())


@pytest.mark.parametrize("name", EXACT)
def test_the_pattern_is_what_autograd_finds(name: str) -> None:
    f, shape = EXACT[name]
    found = torch.zeros(())
    for seed in range(POINTS):
        found = found + (jacobian(f, point(shape, seed)) != 0)
    assert torch.equal(pattern(f, point(shape, 100)), found > 0)


@pytest.mark.parametrize("name", COVERED)
def test_the_pattern_covers_what_autograd_finds(name: str) -> None:
    f, shape = COVERED[name]
    known = pattern(f, point(shape, 100))
    for seed in range(POINTS):
        assert not ((jacobian(f, point(shape, seed)) != 0) & ~known).any()


@pytest.mark.parametrize("name", ["sort", "topk", "max", "where", "argmax index", "sorted by another", "median"])
def test_local_patterns_are_those_of_the_point(name: str) -> None:
    f, shape = COVERED[name]
    x = point(shape, 7)
    local, here = pattern(f, x, local=True), jacobian(f, x) != 0
    assert not (here & ~local).any()


def test_no_rule_is_known_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sparsity_rules._rules, "_softmax")
    found = dependence(lambda x: x.softmax(1), point((3, 2), 0), "a pattern")
    assert dict(found.fallbacks) == {"_softmax": 1}
    assert found.matrix.toarray().all()


READS = {
    "numpy": lambda x: x[torch.from_numpy(np.argsort(x.detach().numpy()))],
    "asarray": lambda x: x[torch.from_numpy(np.argsort(np.asarray(x.detach())))],
    "tolist": lambda x: x[[i for i, value in enumerate(x.tolist()) if value > 0]],
    "dlpack": lambda x: x[torch.from_numpy(np.argsort(np.from_dlpack(x.detach())))],
    "bool index": lambda x: x[x > 0],
    "index of a draw": lambda x: x[torch.rand(5) < 0.5],
}


@pytest.mark.parametrize("name", READS)
def test_values_that_python_takes_are_branches(name: str) -> None:
    x = point((5,), 3)
    with pytest.raises(UnsupportedError, match="local=True"):
        dependence(READS[name], x, "a pattern")
    local = dependence(READS[name], x, "a pattern", local=True).matrix.toarray()
    assert (local.sum(1) == 1).all()


def test_what_is_drawn_may_be_drawn_otherwise() -> None:
    def permuted(x: Tensor) -> Tensor:
        return x[torch.randperm(5)]

    assert dependence(permuted, point((5,), 0), "a pattern").matrix.toarray().all()

    def either(x: Tensor) -> Tensor:
        return torch.where(torch.rand(5) < 0.5, x, x.flip(0))

    expected = torch.eye(5, dtype=torch.bool) | torch.eye(5, dtype=torch.bool).flip(0)
    assert torch.equal(torch.from_numpy(dependence(either, point((5,), 0), "a pattern").matrix.toarray()), expected)


def scaled_by_value(x: Tensor) -> Tensor:
    return x / x.detach().square().sum()


def scaled_without_graph(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.square().sum()
        shifted = x[1:]
    return torch.cat([x * scale, shifted])


def written_without_graph(x: Tensor) -> Tensor:
    y = 2 * x
    with torch.no_grad():
        y[0] = x.sum()
        y.mul_(x.flip(0))
    return y


def written_into_detached(x: Tensor) -> Tensor:
    y = x.detach().clone()
    z = x.clone().detach()
    part = z[2:]
    z.copy_(x.flip(0))
    y[1] = x[3]
    return torch.cat([y, part, z])


def written_through_data(x: Tensor) -> Tensor:
    y = x * 3
    z = y.data
    z[1:].copy_(x[0].expand(len(x) - 1))
    z[2:].copy_(x[1].expand(len(x) - 2))
    return y


def differentiated_inside(x: Tensor) -> Tensor:
    inner = torch.func.grad(lambda z: (z**3).sum() + z[0] * z[1])(x)
    (lost,) = torch.autograd.grad((x**2).sum() * x.sum(), x)
    return torch.cat([inner, lost * x])


def hooked(x: Tensor) -> Tensor:
    y = x * 2
    y.register_hook(lambda g: g.flip(0))
    return y * x.roll(1)


def rounded_inside(x: Tensor) -> Tensor:
    return torch.func.grad(lambda z: (Rounded.apply(z) ** 3).sum())(x)


CUTS = [scaled_by_value, scaled_without_graph, written_without_graph, written_into_detached, written_through_data,
        differentiated_inside, rounded_inside, hooked]  # fmt: skip


@pytest.mark.parametrize("f", CUTS)
def test_values_without_tangents(f) -> None:
    """What is detached, and what runs without a graph, has a value that depends on x and no derivative."""
    found = pattern(f, point((5,), 0))
    for seed in range(POINTS):
        assert not ((jacobian(f, point((5,), seed)) != 0) & ~found).any()
    if f not in (rounded_inside, written_through_data, written_into_detached):
        assert torch.equal(found, jacobian(f, point((5,), 9)) != 0)


def test_cut_values_are_still_values() -> None:
    with pytest.raises(UnsupportedError, match="local=True"):
        dependence(lambda x: x if x.detach().sum() > 0 else -x, point((3,), 0), "a pattern")
    assert dependence(lambda x: x[x.detach().argsort()], point((3,), 0), "a pattern").matrix.toarray().all()


@pytest.mark.parametrize("turn", [lambda y: y.transpose_(0, 1), lambda y: y.t_(), lambda y: y.swapaxes_(0, 1)])
def test_views_made_in_place(turn) -> None:
    found = dependence(lambda x: turn(x.clone())[0] * 2, point((2, 3), 0), "a pattern").matrix.toarray()
    assert found.nonzero()[1].tolist() == [0, 3]


def branching(x: Tensor) -> Tensor:
    return x[:2] if x.sum() > 0 else x[2:]


def test_a_branch_on_data_is_refused_or_followed() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    place = r"(?s)a number \(if, item, an index\) at .*test_function\.py:\d+ in branching.*local=True"
    with pytest.raises(UnsupportedError, match=place):
        dependence(branching, x, "a pattern")
    found = dependence(branching, x, "a pattern", local=True)
    assert found.matrix.toarray().tolist() == [[True, False, False, False], [False, True, False, False]]
    assert len(found.branches) == 1


def test_branches_on_constants_are_no_branches() -> None:
    limit = torch.tensor(3.0)
    assert dependence(lambda x: x * 2 if limit > 2 else x, torch.ones(2), "a pattern").branches == ()


def test_hessian_patterns() -> None:
    def energy(p: dict[str, Tensor]) -> Tensor:
        return (p["a"][1:] - p["a"][:-1]).pow(4).sum() + p["b"].exp().sum() * p["a"][0]

    x = {"a": point((5,), 0), "b": point((2,), 1)}
    found = dependence(energy, x, "a pattern", gradient=True).matrix.toarray()
    a, b = (t.clone().requires_grad_() for t in x.values())
    grads = torch.autograd.grad(energy({"a": a, "b": b}), [a, b], create_graph=True)
    flat = torch.cat(grads)
    exact = torch.stack([torch.cat(torch.autograd.grad(g, [a, b], retain_graph=True)) for g in flat]) != 0
    assert torch.equal(torch.from_numpy(found), exact)


def test_custom_functions_are_analyzed_as_autograd_runs_them() -> None:
    found = dependence(lambda x: Backwards.apply(x)[1:] * x[:-1], point((5,), 0), "a pattern")
    assert found.analyzed == "reverse"
    exact = jacobian(lambda x: Backwards.apply(x)[1:] * x[:-1], point((5,), 1)) != 0
    assert torch.equal(torch.from_numpy(found.matrix.toarray()), exact)


def test_trees_and_spaces() -> None:
    found = dependence(lambda p: [p["w"] @ p["x"], p["w"].sum()], {"w": point((2, 3), 0), "x": point((3,), 0)}, "a pattern")
    assert (found.in_space.names, [tuple(s) for s in found.out_space.shapes]) == (("w", "x"), [(2,), ()])
    assert found.matrix.toarray().tolist() == [
        [True] * 3 + [False] * 3 + [True] * 3,
        [False] * 3 + [True] * 6,
        [True] * 6 + [False] * 3,
    ]


def test_nothing_of_the_users_is_changed() -> None:
    x = point((4,), 0).requires_grad_()
    model = nn.Sequential(nn.Linear(4, 3, dtype=REAL), nn.BatchNorm1d(3, dtype=REAL))
    before = x.detach().clone()
    dependence(lambda t: (t.sin_() if False else t.sin()) * 2, x, "a pattern")
    dependence(model.eval(), point((2, 4), 0), "a pattern")
    assert torch.equal(x.detach(), before)
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("f", "x", "options", "error"),
    [
        (torch.abs, torch.zeros(3, dtype=torch.complex64), {}, UnsupportedError),
        (torch.abs, torch.zeros(3, dtype=torch.int64), {}, LeafError),
        (torch.abs, torch.zeros(3), {"gradient": True}, NonScalarError),
        (lambda x: x.to_sparse(), torch.ones(3), {}, UnsupportedError),
    ],
)
def test_what_cannot_be_followed_is_refused(f, x, options, error) -> None:
    with pytest.raises(error):
        dependence(f, x, "a pattern", **options)


SELECTED = {
    "sort": lambda x: x.sort(1, descending=True).values,
    "sorted by rows": lambda x: x.sort(0).values,
    "topk": lambda x: x.topk(2, 1).values,
    "max": lambda x: x.max(1).values,
    "min": lambda x: x.min(0, keepdim=True).values,
    "median": lambda x: x.median(1).values,
    "kthvalue": lambda x: x.kthvalue(2, 1).values,
    "cummax": lambda x: x.cummax(1).values,
    "pooled": lambda x: F.max_pool1d(x.unsqueeze(0), 2, 1),
    "pooled in channels": lambda x: F.max_pool2d(x.view(2, 3, 2), (2, 1)),
    "shares": lambda x: F.adaptive_max_pool2d(x.view(2, 3, 2), (2, 1)),
}


@pytest.mark.parametrize("name", SELECTED)
def test_at_a_point_what_is_selected_is_one_element(name: str) -> None:
    for seed in range(POINTS):
        x = point((3, 4), seed)
        found = torch.from_numpy(dependence(SELECTED[name], x, "a pattern", local=True).matrix.toarray())
        assert torch.equal(found, jacobian(SELECTED[name], x) != 0)
    anywhere = torch.from_numpy(dependence(SELECTED[name], point((3, 4), 0), "a pattern").matrix.toarray())
    assert anywhere.sum() > found.sum()


def checkpointed(x: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(lambda z: (z * z.roll(1)).sin(), x, use_reentrant=False).sum()


def stored_detached(x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        return (x * x.roll(1)).sin().sum()


class Feedback(torch.autograd.Function):
    """Squares, and pulls back by a neighbor, so that the gradient is one of nothing."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * x.roll(1)


@pytest.mark.parametrize("f", [checkpointed, stored_detached, lambda x: Feedback.apply(x).sum()])
def test_gradients_of_what_autograd_stores(f) -> None:
    x = point((6,), 1)
    exact = jacobian(lambda z: torch.autograd.grad(f(z), z, create_graph=True)[0], x) != 0
    found = sparsity(f, x, of="hessian").pattern.to_dense()
    assert exact.any()
    assert not (exact & ~found).any()
    assert found.sum() <= 18


def test_control_flow_that_no_mode_sees_is_refused() -> None:
    def either(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda z: z.sin(), lambda z: z.cos(), (x,))

    with pytest.raises(UnsupportedError, match=r"operator 'cond'"):
        dependence(either, point((3,), 0), "a pattern")


@pytest.mark.parametrize("shape", [(0, 0), (2, 0, 0)])
def test_empty_operands_have_no_entries(shape: tuple[int, ...]) -> None:
    right = torch.ones(*shape[:-1], 3, dtype=REAL)
    matrix, two = torch.ones(shape, dtype=REAL), torch.zeros(2, dtype=REAL)
    found = dependence(lambda a: torch.linalg.solve(a, right).sum() + two, matrix, "a pattern")
    assert found.matrix.shape == (2, 0)


def test_inside_of_a_transform_nothing_can_be_followed() -> None:
    with pytest.raises(UnsupportedError, match="call it outside"):
        torch.func.vmap(lambda x: dependence(torch.sin, x, "a pattern"))(torch.ones(2, 3))
