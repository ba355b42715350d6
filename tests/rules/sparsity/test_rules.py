"""Rules beyond the op database: patterns that are exact, indices that depend on the input, sparse constants, in-place forms,
what no rule knows, and rules of other libraries."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.core.errors import UnsupportedError
from hesse.rules.sparsity.forms import Same, sparsity_rules
from hesse.sparse.detect import sparsity

REAL = torch.float64
A = torch.randn(4, 6, dtype=REAL, generator=torch.Generator().manual_seed(0))
KEPT = A * (A > 0.3)
SPARSE = {"coo": KEPT.to_sparse_coo(), "csr": KEPT.to_sparse_csr(), "csc": KEPT.to_sparse_csc()}
SQUARE = A[:, :4] + 4 * torch.eye(4, dtype=REAL)
INDEX, BAG = torch.tensor([0, 2, 1, 1]), torch.tensor([0, 2])


def cubed(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: f(x).pow(3).sum()


OPTIONS: list[dict[str, object]] = [
    {"scale_factor": 2}, {"scale_factor": 1.7}, {"scale_factor": 0.6}, {"scale_factor": 1.7, "align_corners": True},
    {"scale_factor": 1.7, "recompute_scale_factor": True},
]  # fmt: skip
SHAPES = {"linear": (2, 3, 7), "bilinear": (1, 2, 4, 5), "bicubic": (1, 1, 6, 5), "trilinear": (1, 1, 3, 4, 2)}
SMOOTH = {
    f"{mode} {options}": (lambda x, m=mode, o=options: F.interpolate(x, mode=m, **o), shape)
    for mode, shape in SHAPES.items()
    for options in OPTIONS
}
EXACT = {  # name: function, shape: the pattern is what autograd finds at several points, and no more
    **{f"sparse @ vector, {k}": (lambda x, m=m: m @ x, (6,)) for k, m in SPARSE.items()},
    **{f"sparse @ matrix, {k}": (lambda x, m=m: torch.sparse.mm(m, x), (6, 3)) for k, m in SPARSE.items()},
    **{f"matrix @ sparse, {k}": (lambda x, m=m: x @ m, (3, 4)) for k, m in SPARSE.items()},
    **{f"addmm, {k}": (lambda x, m=m: torch.addmm(x[:4], m, x), (6, 3)) for k, m in SPARSE.items()},
    "sparse addmm": (lambda x: torch.sparse.addmm(x[:4], SPARSE["coo"], x), (6, 3)),
    **SMOOTH,
    "antialiased": (lambda x: F.interpolate(x, size=(3, 7), mode="bilinear", antialias=True), (1, 2, 4, 5)),
    "antialiased bicubic": (lambda x: F.interpolate(x, size=(2, 3), mode="bicubic", antialias=True), (1, 1, 6, 5)),
    "a long way down": (lambda x: F.interpolate(x, size=31, mode="linear"), (1, 1, 100)),
    "a long way up": (lambda x: F.interpolate(x, size=300, mode="linear"), (1, 1, 40)),
    "columns of a solution": (lambda x: torch.linalg.solve(SQUARE, x), (4, 3)),
    "rows of a solution": (lambda x: torch.linalg.solve(SQUARE, x, left=False), (3, 4)),
    "batches of a solution": (lambda x: torch.linalg.solve(SQUARE, x), (2, 4, 3)),
    "vectors": (lambda x: torch.linalg.solve(SQUARE.expand(2, 4, 4), x), (2, 4)),
    "bilinear layer": (lambda x: F.bilinear(x[:, :2], x[:, 2:], A.view(2, 4, 3)[:, :2]), (3, 5)),
    "bags": (lambda x: F.embedding_bag(INDEX, x, BAG, mode="sum"), (3, 4)),
    "bags with weights": (lambda x: F.embedding_bag(INDEX, x[:, 1:], BAG, mode="sum", per_sample_weights=x[:, 0]), (4, 5)),
    "segments": (lambda x: torch.segment_reduce(x, "sum", lengths=torch.tensor([2, 0, 3])), (5, 2)),
    "segments of one": (lambda x: torch.segment_reduce(x, "sum", lengths=torch.tensor([0, 2])), (2, 2)),
    "gated": (lambda x: F.glu(x, 1), (2, 6)),
    "trace": (lambda x: x.trace()[None], (3, 4)),
    "fold": (lambda x: F.fold(x, (4, 5), (2, 2)), (1, 8, 12)),
    "weight norm": (lambda x: torch._weight_norm(x[:, 1:].contiguous(), x[:, :1].contiguous(), 0), (4, 5)),
    "broadcast into places": (lambda x: torch.zeros(4, 5, dtype=REAL).index_put((BAG,), x), (1, 5)),
    "broadcast columns": (lambda x: torch.zeros(4, 5, dtype=REAL).index_put((BAG,), x), (2, 1)),
    "lists": (lambda x: torch.stack(torch._foreach_mul([x[0], x[1]], [x[1], x[2]])), (3, 2)),
    "triangle in place": (lambda x: x.clone().tril_(-1)[1:], (3, 4)),
    "mask in place": (lambda x: x.clone().masked_fill_(torch.tensor([True, False, True]), 0.0), (3,)),
    "transposed in place": (lambda x: x.clone().transpose_(0, 1)[0], (2, 3)),
    "second difference": (lambda x: x.diff(n=2), (6,)),
    "view of a broadcast": (lambda x: (x[0] + torch.zeros(4, dtype=REAL)).view(2, 2)[:, 1:] * x[1:3, None], (3,)),
    "unpooled": (lambda x: F.max_unpool1d(x, torch.tensor([[[1, 2, 5]]]), 2), (1, 1, 3)),
    "unbatched tall product": (lambda x: torch.chain_matmul(x, A[:, :2]), (3, 4)),
}  # fmt: skip
HESSIANS = {
    **{f"sparse, {k}": (cubed(lambda x, m=m: m @ x), (6,)) for k, m in SPARSE.items()},
    "unfold": (cubed(lambda x: F.unfold(x, (2, 2))), (1, 2, 4, 3)),
    "gated": (lambda x: F.glu(x, 1).square().sum(), (2, 6)),
    "interpolated": (cubed(lambda x: F.interpolate(x, scale_factor=1.7, mode="linear")), (2, 3, 5)),
    "interpolated both ways": (cubed(lambda x: F.interpolate(x, size=(3, 7), mode="bicubic")), (1, 1, 4, 5)),
    "antialiased": (cubed(lambda x: F.interpolate(x, size=(3, 7), mode="bilinear", antialias=True)), (1, 1, 4, 5)),
    "nearest": (cubed(lambda x: F.interpolate(x, scale_factor=2)), (1, 2, 5)),
    "reflected": (cubed(lambda x: F.pad(x, (2, 1), mode="reflect")), (1, 2, 5)),
    "replicated": (cubed(lambda x: F.pad(x, (2, 1, 1, 1), mode="replicate")), (1, 2, 3, 4)),
    "group norm": (cubed(lambda x: F.group_norm(x, 2, x[0, :, 0], x[0, :, 1])), (2, 4, 3)),
    "layer norm": (cubed(lambda x: F.layer_norm(x, (4,))), (3, 4)),
    "batch norm": (cubed(lambda x: F.batch_norm(x, None, None, x[0], x[1], training=True)), (3, 4)),
    "batch norm at rest": (cubed(lambda x: F.batch_norm(x, A[0, :4], A[1, :4].exp())), (3, 4)),
    "embedding": (cubed(lambda x: F.embedding(INDEX, x)), (3, 4)),
    "average pool": (cubed(lambda x: F.avg_pool2d(x, 2)), (1, 2, 4, 4)),
    "adaptive pool": (cubed(lambda x: F.adaptive_avg_pool2d(x, (2, 3))), (1, 1, 5, 4)),
    "convolution": (cubed(lambda x: F.conv1d(x, A.view(2, 4, 3)[:, :2])), (1, 2, 6)),
    "weight norm": (cubed(lambda x: torch._weight_norm(x[:, 1:].contiguous(), x[:, :1].contiguous(), 0)), (4, 3)),
}  # fmt: skip
BY_DATA = {  # name: function, shape, entries: indices depend on the input, and stay in their line
    "gather": (lambda x: x.gather(1, x.argsort(1)), (3, 4), 3 * 4 * 4),
    "index": (lambda x: x[:, x[0].argsort()], (3, 4), 3 * 4 * 4),
    "embedding": (lambda x: F.embedding(x[0].argsort() % 3, x), (3, 4), 4 * 4 * 3),
    "index_select": (lambda x: x.index_select(0, x[:, 0].argsort()), (3, 4), 3 * 4 * 3),
    "scatter": (lambda x: torch.zeros(3, 4, dtype=REAL).scatter(1, x.argsort(1), x), (3, 4), 3 * 4 * 4),
    "index_add": (lambda x: torch.zeros(3, 4, dtype=REAL).index_add(1, x[0].argsort(), x), (3, 4), 3 * 4 * 4),
    "written by a mask": (lambda x: x.clone().index_put_((x > 0,), torch.zeros((), dtype=REAL)), (5,), 5),
    "index_fill": (lambda x: x.index_fill(0, x.argmax()[None], 1.0), (5,), 5),
}


def point(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, dtype=REAL, generator=torch.Generator().manual_seed(seed))


def rows(y: Tensor, x: Tensor) -> Tensor:
    found = [torch.autograd.grad(e, x, retain_graph=True, allow_unused=True)[0] for e in y.reshape(-1)]
    return torch.stack([torch.zeros_like(x) if r is None else r for r in found]).flatten(1)


def jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return rows(f(x), x)


def hessian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return rows(torch.autograd.grad(f(x), x, create_graph=True)[0], x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXACT)
def test_the_pattern_is_what_autograd_finds(name: str) -> None:
    f, shape = EXACT[name]
    found = sparsity(f, point(shape, 100))
    exact = sum((jacobian(f, point(shape, seed)) != 0 for seed in range(3)), torch.zeros(()))
    assert torch.equal(found.pattern.to_dense(), exact > 0)
    assert not found.fallbacks


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HESSIANS)
def test_the_pattern_of_a_hessian_is_what_autograd_finds(name: str) -> None:
    f, shape = HESSIANS[name]
    found = sparsity(f, point(shape, 100), of="hessian")
    exact = sum((hessian(f, point(shape, seed)).abs() > 1e-12 for seed in range(3)), torch.zeros(()))
    assert torch.equal(found.pattern.to_dense(), exact > 0)
    assert not found.fallbacks


@pytest.mark.parametrize("name", BY_DATA)
def test_an_index_from_the_input_points_along_its_axis(name: str) -> None:
    f, shape, entries = BY_DATA[name]
    pattern = sparsity(f, point(shape, 100)).pattern
    assert pattern.nnz == entries
    known = pattern.to_dense()
    for seed in range(20):
        assert not ((jacobian(f, point(shape, seed)) != 0) & ~known).any()


@pytest.mark.parametrize("f", [
    lambda x: x[x > 0], lambda x: x.masked_select(x > 0), lambda x: x[(x > 0).nonzero()[:, 0]],
    lambda x: x.repeat_interleave((x > 0).long()), lambda x: x[torch.bincount((x > 0).long(), minlength=2).argmax()[None]],
])  # fmt: skip
def test_shapes_that_depend_on_the_input_are_refused(f) -> None:
    with pytest.raises(UnsupportedError, match="local=True"):
        sparsity(f, point((5,), 0))
    assert sparsity(f, point((5,), 0), local=True).local


def test_random_indices_point_everywhere() -> None:
    assert sparsity(lambda x: x[torch.randperm(5)], point((5,), 0)).pattern.nnz == 25


@torch.library.custom_op("hesse_tests::blend", mutates_args=())
def blend(x: Tensor, y: Tensor) -> Tensor:
    return 2 * x + y.flip(0)


@blend.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("hesse_tests::doubled", mutates_args=())
def doubled(g: Tensor) -> Tensor:
    return 2 * g


@doubled.register_fake
def _(g: Tensor) -> Tensor:
    return torch.empty_like(g)


def _pull(ctx, g: Tensor) -> tuple[Tensor, Tensor]:
    return doubled(g), g.flip(0)


blend.register_autograd(_pull)


def test_what_has_no_rule_mixes_everything_and_is_named(monkeypatch) -> None:
    monkeypatch.delitem(sparsity_rules._rules, "cumsum")
    found = sparsity(lambda x: x.cumsum(0), point((4,), 0))
    assert (found.pattern.nnz, dict(found.fallbacks)) == (16, {"cumsum": 1})
    assert "cumsum" in found.explain()


def test_ops_of_other_libraries_take_rules(monkeypatch) -> None:
    """What is followed of an op with a backward of its own are the ops of that backward."""

    def f(t: Tensor) -> Tensor:
        return blend(t, torch.ones_like(t)) * t[0]

    x = point((4,), 0)
    found = sparsity(f, x)
    assert (found.pattern.nnz, dict(found.fallbacks)) == (16, {"hesse_tests::doubled": 1})
    monkeypatch.setitem(sparsity_rules._rules, "hesse_tests::doubled", None)
    sparsity_rules.register("hesse_tests::doubled")(lambda call: [(0, call["g"], Same())])
    found = sparsity(f, x)
    assert torch.equal(found.pattern.to_dense(), jacobian(f, x) != 0)
    assert not found.fallbacks
