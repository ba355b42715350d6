"""Random programs of views, writes through them, pointwise ops, reductions, products, gathers: no entry is missing.

Each program is drawn from a seed: what it does is the same at every point, so that its pattern has to cover the Jacobian at
each of them. The oracle is a loop of `torch.autograd.grad`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.autodiff.dependence.function import dependence

REAL = torch.float64
Step = Callable[[list[Tensor]], None]


class Program:
    """A program of `length` steps on a pool of tensors, of which the last few are returned."""

    def __init__(self, seed: int, length: int) -> None:
        self.draw = random.Random(seed)
        self.constants = torch.Generator().manual_seed(seed)
        self.start = tuple(self.draw.choice([(6,), (2, 3), (3, 4), (2, 3, 2)]))
        self.steps: list[tuple[str, int, int, int]] = []
        for _ in range(length):
            self.steps.append((self.draw.choice(list(STEPS)), *(self.draw.randrange(10**6) for _ in range(3))))

    def __call__(self, x: Tensor) -> Tensor:
        pool = [x.clone()]
        for name, i, j, k in self.steps:
            made = STEPS[name](pool, i, j, k)
            if made is not None and 0 < made.numel() <= 60:
                pool.append(made)
        return torch.cat([t.reshape(-1) for t in pool[-3:]])

    def __repr__(self) -> str:
        return f"{self.start}: " + "; ".join(f"{name}({i}, {j}, {k})" for name, i, j, k in self.steps)


def one(pool: list[Tensor], i: int) -> Tensor:
    return pool[i % len(pool)]


def fitted(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor with a shape, made of the elements of another by indexing."""
    size = torch.Size(shape).numel()
    return y.reshape(-1)[torch.arange(size) % y.numel()].view(shape)


def sliced(pool: list[Tensor], i: int, j: int, k: int) -> Tensor | None:
    t = one(pool, i)
    if not t.ndim:
        return None
    dim = j % t.ndim
    start, step = k % t.shape[dim], 1 + k % 3
    return t[(slice(None),) * dim + (slice(start, None, step),)]


def transposed(pool: list[Tensor], i: int, j: int, k: int) -> Tensor | None:
    t = one(pool, i)
    return t.transpose(j % t.ndim, k % t.ndim) if t.ndim else None


def viewed(pool: list[Tensor], i: int, j: int, k: int) -> Tensor | None:
    t = one(pool, i)
    return t.reshape(-1, [1, 2, 3][j % 3]) if t.numel() % [1, 2, 3][j % 3] == 0 else t.unsqueeze(0)


def diagonal(pool: list[Tensor], i: int, j: int, k: int) -> Tensor | None:
    t = one(pool, i)
    return t.diagonal() if t.ndim >= 2 else t.expand(2, *t.shape)


def pointwise(pool: list[Tensor], i: int, j: int, k: int) -> Tensor:
    return [torch.sin, torch.tanh, lambda t: t * t, lambda t: F.relu(t - 0.1), torch.exp, torch.neg, torch.sigmoid][k % 7](
        one(pool, i) / 2
    )


def binary(pool: list[Tensor], i: int, j: int, k: int) -> Tensor:
    a, b = one(pool, i), one(pool, j)
    b = fitted(b, tuple(a.shape))
    return [torch.add, torch.mul, torch.maximum, torch.sub, lambda p, q: torch.where(q > 0, p, q), torch.atan2][k % 6](
        a, b + 0.01
    )


def broadcast(pool: list[Tensor], i: int, j: int, k: int) -> Tensor | None:
    a, b = one(pool, i), one(pool, j)
    return a.reshape(-1)[:5].unsqueeze(1) * b.reshape(-1)[:4]


def reduced(pool: list[Tensor], i: int, j: int, k: int) -> Tensor | None:
    t = one(pool, i)
    if not t.ndim:
        return t.sum()
    dim = j % t.ndim
    correction = int(t.shape[dim] > 1)  # the deviation of a single number would be 0 / 0, and PyTorch warns
    ways = [lambda: t.sum(dim), lambda: t.amax(dim), lambda: t.softmax(dim), lambda: t.cumsum(dim), lambda: t.logsumexp(dim),
            lambda: t.sort(dim).values, lambda: t.prod(dim), lambda: t.flip(dim), lambda: t.roll(1, dim),
            lambda: t.std(dim, correction=correction),
            lambda: t.mean(dim, keepdim=True), lambda: t.min(dim).values, lambda: t.cumprod(dim)]  # fmt: skip
    return ways[k % len(ways)]()


def product(pool: list[Tensor], i: int, j: int, k: int) -> Tensor | None:
    a, b = fitted(one(pool, i), (3, 2)), fitted(one(pool, j), (2, 4))
    return [lambda: a @ b, lambda: torch.outer(a[:, 0], b[0]), lambda: torch.einsum("ij,jk->k", a, b),
            lambda: F.linear(a, b.T), lambda: torch.addmm(a[:, :1], a, b), lambda: a[:, 0].dot(a[:, 1])][k % 6]()  # fmt: skip


def gathered(pool: list[Tensor], i: int, j: int, k: int) -> Tensor | None:
    t = one(pool, i).reshape(-1)
    index = torch.tensor([(j + 7 * n) % len(t) for n in range(5)])
    return [lambda: t[index], lambda: t.index_select(0, index), lambda: t.gather(0, index), lambda: t.take(index),
            lambda: torch.zeros(len(t), dtype=REAL).index_add(0, index, t[index] * 2),
            lambda: t.scatter(0, index[:2], t[index[2:4]]), lambda: t.index_fill(0, index[:1], 0.5)][k % 7]()  # fmt: skip


def windowed(pool: list[Tensor], i: int, j: int, k: int) -> Tensor | None:
    t = fitted(one(pool, i), (1, 2, 6))
    w = fitted(one(pool, j), (2, 2, 3)) if k % 2 else torch.linspace(-1, 1, 12, dtype=REAL).view(2, 2, 3)
    return [lambda: F.conv1d(t, w, padding=1), lambda: F.max_pool1d(t, 2), lambda: F.avg_pool1d(t, 3, 1),
            lambda: t.unfold(2, 2, 2), lambda: F.pad(t, (1, 2), mode="circular"),
            lambda: F.interpolate(t, size=4, mode="linear"),
            lambda: F.conv_transpose1d(t, w, stride=2)][k % 7]()  # fmt: skip


def joined(pool: list[Tensor], i: int, j: int, k: int) -> Tensor | None:
    a, b = one(pool, i).reshape(-1), one(pool, j).reshape(-1)
    return torch.cat([a[:6], b[:6]]) if k % 2 else torch.stack([fitted(a, (4,)), fitted(b, (4,))], k % 2)


def written(pool: list[Tensor], i: int, j: int, k: int) -> Tensor | None:
    """Write into a fresh copy through a view of it."""
    t, source = one(pool, i).clone(), one(pool, j)
    if not t.ndim:
        return t.add_(1)
    view = t[..., k % t.shape[-1]] if k % 2 else t.reshape(-1)[:: 1 + k % 2]
    part = fitted(source, tuple(view.shape))
    ways = [lambda: view.copy_(part), lambda: view.mul_(part), lambda: view.add_(part),
            lambda: view.fill_(source.reshape(-1)[0]), lambda: view.zero_(), lambda: view.sub_(0.5 * part.sum())]  # fmt: skip
    ways[k % 6]()
    return t


def written_in_place(pool: list[Tensor], i: int, j: int, k: int) -> Tensor | None:
    """Write into a tensor of the pool, of which others may be views; autograd may refuse, and then nothing happens."""
    t, source = one(pool, i), one(pool, j).detach() * 0 + one(pool, j)
    try:
        t.mul_(fitted(source, tuple(t.shape)))
    except RuntimeError:
        return None
    return None


def cut(pool: list[Tensor], i: int, j: int, k: int) -> Tensor | None:
    return one(pool, i) * one(pool, i).detach().sum()


STEPS = {
    "sliced": sliced, "transposed": transposed, "viewed": viewed, "diagonal": diagonal, "pointwise": pointwise,
    "binary": binary, "broadcast": broadcast, "reduced": reduced, "product": product,
    "gathered": gathered, "windowed": windowed,
    "joined": joined, "written": written, "written_in_place": written_in_place, "cut": cut,
}  # fmt: skip


def jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    y = f(x)
    rows = [torch.autograd.grad(e, x, retain_graph=True, allow_unused=True)[0] if e.requires_grad else None for e in y]
    return torch.stack([torch.zeros(x.numel(), dtype=REAL) if r is None else r.reshape(-1) for r in rows])


def missing(seed: int) -> str:
    """What a program's pattern lacks; nothing if it has all, or is no program at all."""
    program = Program(seed, 3 + seed % 9)
    x = torch.randn(program.start, dtype=REAL, generator=torch.Generator().manual_seed(seed))
    try:
        jacobian(program, x)
    except RuntimeError:  # it writes to what autograd still needs
        return ""
    found = torch.from_numpy(dependence(program, x, "a pattern").matrix.toarray())
    for shift in range(4):
        point = torch.randn(program.start, dtype=REAL, generator=torch.Generator().manual_seed(seed + 10**6 * shift))
        slopes = jacobian(program, point).nan_to_num(0, 0, 0)  # where a program overflows, zero times infinity is everywhere
        lost = (slopes != 0) & ~found
        if lost.any():
            return f"seed {seed}, {program!r}: {lost.nonzero()[:3].tolist()}"
    return ""


def test_no_entry_of_a_random_program_is_missing(sweep: Callable[[range, int], list[int]]) -> None:
    wrong = [text for seed in sweep(range(4000), 60) if (text := missing(seed))]
    assert not wrong, "\n".join(wrong[:5])


def test_most_random_programs_run() -> None:
    """The sweep tests something."""
    ran = 0
    for seed in range(40):
        program = Program(seed, 3 + seed % 9)
        x = torch.randn(program.start, dtype=REAL, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        try:
            ran += bool(torch.autograd.grad(program(x).sum(), x, allow_unused=True))
        except RuntimeError:
            continue
    assert ran > 25
