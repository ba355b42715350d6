"""Every kind of operator with its matrix, which is built with plain torch and loops, not with hesse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.convolutions import convolution
from hesse.core.space import Space
from hesse.operators import (
    Average,
    BlockDiagonal,
    Congruence,
    Conjugate,
    Dense,
    Diagonal,
    Function,
    Identity,
    Kronecker,
    LinearOperator,
    LowRank,
    Sparse,
    Tag,
)

from ..convolutions.torch_oracle import named

Random = Callable[..., Tensor]
Case = tuple[LinearOperator, Tensor]


@dataclass(frozen=True)
class Layer:
    weight: Any
    bias: Any


class Point(NamedTuple):
    y: Any
    x: Any


def flat(value: Any) -> Tensor:
    """All tensors of a tree, one after another in insertion order, written without hesse."""

    def walk(node: Any) -> Iterator[Tensor]:
        if isinstance(node, Tensor):
            yield node.reshape(-1)
        elif isinstance(node, dict):
            for child in node.values():
                yield from walk(child)
        elif isinstance(node, (list, tuple)):
            for child in node:
                yield from walk(child)
        elif is_dataclass(node):
            for field in fields(node):
                yield from walk(getattr(node, field.name))

    return torch.cat(list(walk(value)))


def drawing(dtype: torch.dtype, seed: int = 0) -> Random:
    """Standard normal tensors of one dtype from one seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, dtype=dtype, generator=generator)


def trees(t: Random) -> dict[str, Any]:
    """Trees of every nesting, none of them sorted; the number of elements differs from one to the next."""
    return {
        "bare": t(5),
        "scalar": t(),
        "matrix": t(2, 3),
        "dict": {"b": t(2, 2), "a": t(3)},
        "list": [t(4), t(2, 2)],
        "tuple": (t(), t(1, 2), t(6)),
        "named tuple": Point(t(2), t(2, 4)),
        "dataclass": Layer(t(3, 2), t(4)),
        "nested": {"z": [t(2), (t(), Layer({"k": t(1, 2)}, t(3)))], "a": Point(t(2, 1), {"q": t(2)})},
        "static leaves": {"name": "conv", "w": t(3), "stride": 2, "none": None, "b": t(2)},
    }


def _hermitian(M: Tensor) -> frozenset[Tag]:
    return frozenset({Tag.HERMITIAN} if M.dtype.is_complex else {Tag.HERMITIAN, Tag.SYMMETRIC})


def _dense_cases(t: Random) -> Iterator[tuple[str, Case]]:
    examples = trees(t)
    names = list(examples)
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        rows, columns = flat(examples[other]).numel(), flat(examples[name]).numel()
        M = t(rows, columns)
        yield f"Dense {name} to {other}", (Dense(M, Space.of(examples[name]), Space.of(examples[other])), M)
    yield "Dense wide", (lambda M: (Dense(M), M))(t(2, 7))
    root = t(4, 3)
    gram = root @ root.mH
    yield "Dense PSD", (Dense(gram, tags=_hermitian(gram) | {Tag.PSD}), gram)
    symmetric = gram + gram.mT
    yield "Dense symmetric", (Dense(symmetric, tags=frozenset({Tag.SYMMETRIC})), symmetric)


def _structured_cases(t: Random) -> Iterator[tuple[str, Case]]:
    for name, example in trees(t).items():
        space = Space.of(example)
        n = flat(example).numel()
        yield f"Identity {name}", (Identity(space), torch.eye(n, dtype=space.dtype))
        yield f"Diagonal {name}", (Diagonal(example), torch.diag(flat(example)))
    left, right, weights = t(5, 2), t(3, 2), t(2)
    yield "LowRank", (LowRank(left, weights, right), _outer(left, weights, right))
    yield "LowRank symmetric", (LowRank(left), _outer(left, torch.ones(2, dtype=left.dtype), left))
    yield "LowRank weighted", (LowRank(left, weights), _outer(left, weights, left))
    example = {"b": t(2, 2), "a": t(1)}
    tree_space = Space.of(example)
    yield "LowRank on a tree", (LowRank(left, weights, in_space=tree_space), _outer(left, weights, left))
    yield "LowRank out of a tree", (LowRank(right, weights, left, tree_space), _outer(right, weights, left))
    p, q = t(2, 3), t(5, 4)
    yield "Kronecker", (Kronecker(p, q), torch.kron(p, q))
    spaces = Space.of({"k": t(3, 2), "j": t(6)}), Space.of((t(5), t(1, 5)))
    yield "Kronecker on trees", (Kronecker(p, q, *spaces), torch.kron(p, q))


def _outer(left: Tensor, weights: Tensor, right: Tensor) -> Tensor:
    return sum(w * torch.outer(left[:, k], right[:, k]) for k, w in enumerate(weights))  # pyright: ignore


def _sparse_cases(t: Random) -> Iterator[tuple[str, Case]]:
    places = {
        "in rows": [(0, 1), (0, 4), (2, 0), (2, 1), (2, 5)],
        "in columns": [(2, 0), (0, 1), (2, 1), (0, 4), (2, 5)],
        "in no order, some twice": [(2, 5), (0, 1), (2, 0), (0, 1), (1, 3), (2, 5)],
    }
    for name, entries in places.items():
        values, M = t(len(entries)), torch.zeros(4, 6, dtype=t().dtype)
        for (i, j), value in zip(entries, values, strict=True):
            M[i, j] += value
        yield f"Sparse {name}", (Sparse(torch.tensor(entries).T, values, 6, 4), M)
    in_space, out_space = Space.of({"b": t(2, 2), "a": t(2)}), Space.of((t(1), t(3)))
    yield "Sparse on trees", (Sparse(torch.tensor(entries).T, values, in_space, out_space), M)
    yield "Sparse of nothing", (Sparse(torch.zeros(2, 0, dtype=torch.int64), t(0), 3, 2), 0 * t(2, 3))
    band = torch.tensor([(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)]).T
    diagonal, side = t(3), t(1)
    S = torch.diag(diagonal)
    S[0, 1] = S[1, 0] = side[0]
    entries = torch.cat([diagonal[:1], side, side, diagonal[1:]])
    yield "Sparse symmetric", (Sparse(band, entries, 3, 3, frozenset({Tag.SYMMETRIC})), S)


def _function_cases(t: Random) -> Iterator[tuple[str, Case]]:
    def running(v: Tensor) -> Tensor:
        return v.cumsum(0)

    def running_back(u: Tensor) -> Tensor:
        return u.flip(0).cumsum(0).flip(0)

    v = t(4)
    space = Space.of(v)
    yield "Function", (Function(space, space, running, running_back), torch.ones(4, 4).tril().to(v.dtype))
    reverse = Function(space, space, lambda x: x.flip(0), tags=frozenset({Tag.SYMMETRIC, Tag.HERMITIAN}))
    yield "Function symmetric", (reverse, torch.eye(4).flip(0).to(v.dtype))
    pick = Function(
        Space.of({"b": t(2), "a": t(3)}),
        Space.of(Point(t(1), t(2))),
        lambda w: Point(w["a"][1:2], w["b"] * 3),
        lambda u: {"b": u.x * 3, "a": torch.cat([0 * u.y, u.y, 0 * u.y])},
    )
    M = torch.zeros(3, 5, dtype=v.dtype)
    M[0, 3], M[1, 0], M[2, 1] = 1, 3, 3
    yield "Function between trees", (pick, M)


def _convolution_cases(t: Random) -> Iterator[tuple[str, Case]]:
    for name, drawn in named(t().dtype):
        A, M = convolution(drawn.weight, drawn.shape, **drawn.options), drawn.matrix()
        yield f"Convolution, {name}", (A, M)
        yield f"TransposedConvolution, {name}", (A.T, M.mT)
    yield "Convolutions composed", (A.T @ A - 2 * Identity(A.in_space), M.mT @ M - 2 * torch.eye(M.shape[1], dtype=M.dtype))


def _massive(M: Tensor, mass: float) -> Dense:
    A = Dense(M)
    A.mass = mass
    return A


def _algebra_cases(t: Random) -> Iterator[tuple[str, Case]]:
    M, N, P, d = t(3, 5), t(3, 5), t(5, 4), t(5)
    A, B, C, D = Dense(M), Dense(N), Dense(P), Diagonal(d)
    yield "Sum", (A + B + A, 2 * M + N)
    yield "difference", (A - B, M - N)
    yield (
        "Sum of symmetric",
        (D + 2 * D + Identity(D.in_space), torch.diag(3 * d) + torch.eye(5, dtype=d.dtype)),
    )
    yield "Scaled", (2.5 * A, 2.5 * M)
    yield "Scaled by a tensor", (A * torch.tensor(-0.5, dtype=M.dtype), -0.5 * M)
    yield "quotient", (A / 4, M / 4)
    yield "negative", (-D, -torch.diag(d))
    yield "Composed", (A @ C, M @ P)
    yield "Composed thrice", (A @ D @ C, M @ torch.diag(d) @ P)
    yield "Composed diagonal", (D @ D, torch.diag(d * d))
    yield "Conjugate", (Conjugate(A), M.conj())
    yield "Congruence of nothing", (Congruence(A), M.mH @ M)
    root = t(3, 3)
    H, S = root @ root.mH, root + root.mT
    yield "Congruence PSD", (Congruence(A, Dense(H, tags=_hermitian(H) | {Tag.PSD})), M.mH @ H @ M)
    yield "Congruence untagged", (Congruence(A, Dense(root)), M.mH @ root @ M)
    yield "Congruence symmetric", (Congruence(A, Dense(S, tags=frozenset({Tag.SYMMETRIC}))), M.mH @ S @ M)
    everything = 2 * (A @ C).T @ (A - B) @ D.H + (C.T @ D - P.mT.norm().item() * C.T)
    yield (
        "combination",
        (
            everything,
            2 * (M @ P).mT @ (M - N) @ torch.diag(d.conj()) + P.mT @ torch.diag(d) - P.mT.norm().item() * P.mT,
        ),
    )
    if M.dtype.is_complex:
        yield "Scaled by a complex number", ((1 - 2j) * A, (1 - 2j) * M)
        yield "Hermitian times i", (1j * Dense(H, tags=_hermitian(H)), 1j * H)
    blocks = {"z": A, "a": Kronecker(t(2, 1), t(1, 3)), "m": D}
    kron = torch.kron(blocks["a"].left, blocks["a"].right)  # pyright: ignore
    yield "BlockDiagonal", (BlockDiagonal(blocks), torch.block_diag(M, kron, torch.diag(d)))
    tagged = {"b": D, "a": Diagonal({"u": d[:2], "t": d[2:]})}
    yield "BlockDiagonal of diagonals", (BlockDiagonal(tagged), torch.diag(torch.cat([d, d])))
    batches = [(M, 0.5), (N, 7.0), (M - N, 2.25)]
    weighted = (0.5 * M + 7 * N + 2.25 * (M - N)) / 9.75
    yield "Average", (Average(lambda batch: _massive(*batch), batches), weighted)
    yield "Average additive", (Average(lambda batch: _massive(*batch), batches, additive=True), 2 * M)


def operators(dtype: torch.dtype) -> dict[str, Case]:
    """Name to (operator, its matrix ``[out, in]`` in the order of the trees' leaves)."""
    t = drawing(dtype)
    parts = (_dense_cases, _structured_cases, _sparse_cases, _function_cases, _convolution_cases, _algebra_cases)
    return {name: case for part in parts for name, case in part(t)}
