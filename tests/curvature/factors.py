"""KFAC by definition: inputs and output cotangents of every layer, seen at PyTorch's own functions. No hesse here."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.curvature import references
from tests.parameters import oracle

_NAMES = ("linear", "embedding", *(f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3)))


@dataclass
class Seen:
    """One call of a layer's function.

    Attributes:
        weight, output: what it used, and gave.
        factors: ``cotangent -> (first, second factor)``, ``[n, G, t, a]`` and ``[n, G, t, b]``, in the order of the weight's
            axes.
        counts: whether the first factor counts tokens, of which those without a cotangent are left out.
    """

    weight: Tensor
    output: Tensor
    factors: Callable[[Tensor], tuple[Tensor, Tensor]]
    counts: bool


class Recorder:
    """Within it, calls of linear, convolutions and embedding are recorded (`torch.nn.functional` is patched)."""

    def __init__(self, count: int) -> None:
        self.count, self.seen, self._patch = count, list[Seen](), pytest.MonkeyPatch()

    def __enter__(self) -> Recorder:
        for name in _NAMES:
            self._patch.setattr(F, name, functools.partial(self._call, getattr(F, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _call(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if func.__name__ == "linear":
            z = args[0].detach()
            make = lambda g: (self._positions(g), self._positions(z))  # noqa: E731
        else:
            make = self._embedding(args, kwargs) if func.__name__ == "embedding" else self._convolution(func.__name__, args)
        self.seen.append(Seen(args[1], result, make, func.__name__ == "embedding"))
        return result

    def _positions(self, x: Tensor) -> Tensor:
        """``[n, 1, t, c]``, wherever the samples are: first, second, or fastest of one common axis."""
        if x.ndim == 2 and len(x) != self.count:
            x = x.unflatten(0, (-1, self.count))
        x = x if len(x) == self.count else x.transpose(0, 1)
        return x.reshape(self.count, 1, -1, x.shape[-1])

    def _embedding(self, args: Any, kwargs: Any) -> Any:
        tokens, weight = args[:2]
        padding = args[2] if len(args) > 2 else kwargs.get("padding_idx")
        onehot = F.one_hot(tokens, len(weight)).to(weight.dtype).unsqueeze(1)

        def factors(g: Tensor) -> tuple[Tensor, Tensor]:
            g = g if padding is None else g * (tokens != padding).unsqueeze(2)
            g = g.unsqueeze(1)
            return onehot * (g != 0).any(3, keepdim=True), g

        return factors

    def _convolution(self, name: str, args: Any) -> Any:
        x, weight, _, stride, padding = args[:5]
        x = x.detach()
        axes, is_transposed = int(name[-2]), "transpose" in name
        groups, dilation = args[6], args[7] if is_transposed else args[5]
        stride, padding, dilation = ((v,) * axes if isinstance(v, int) else tuple(v) for v in (stride, padding, dilation))

        def factors(g: Tensor) -> tuple[Tensor, Tensor]:
            slid, still = (g, x) if is_transposed else (x, g)
            patches = _patches(slid, weight.shape[2:], stride, padding, dilation, groups, still.shape[2:])
            return still.reshape(len(x), groups, still.shape[1] // groups, -1).mT, patches

        return factors


def _patches(x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int, sizes: Any) -> Tensor:
    """``[n, G, t, C / G * kernel]``."""
    x = F.pad(x, [p for pair in reversed(padding) for p in (pair, pair)])
    for axis, (k, s, d, size) in enumerate(zip(kernel, stride, dilation, sizes, strict=True)):
        x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d].narrow(2 + axis, 0, size)
    axes = len(kernel)
    x = x.movedim(1, 1 + axes).flatten(1, axes)  # [n, t, C, *kernel]
    return x.unflatten(2, (groups, -1)).movedim(2, 1).flatten(3)


@dataclass
class Block:
    """Sums over samples, positions and cotangents, for one weight and the rows of it that one call used."""

    left: Tensor
    right: Tensor
    terms: int


@dataclass
class Matrix:
    """A curvature matrix by its parts.

    Attributes:
        dense: the exact one.
        blocks: (parameter, first row) -> the factors, not divided by the mass.
        names, params: the parameters.
        mass: what is divided by.
    """

    dense: Tensor
    blocks: dict[tuple[str, int], Block]
    params: dict[str, Tensor]
    mass: float

    def slice(self, name: str) -> slice:
        """The columns of a parameter."""
        start = 0
        for other, p in self.params.items():
            if other == name:
                return slice(start, start + p.numel())
            start += p.numel()
        raise KeyError(name)

    def exact(self, name: str) -> Tensor:
        """The block of a parameter."""
        return self.dense[self.slice(name), self.slice(name)]

    def kronecker(self, name: str, widest: float = math.inf) -> Tensor:
        """The approximation of a parameter's block, zero outside of the rows that were used."""
        shape = self.params[name].shape
        result = torch.zeros_like(self.exact(name))
        for (other, row), block in self.blocks.items():
            if other == name:
                sides = [torch.diag_embed(s.diagonal(dim1=1, dim2=2)) if s.shape[1] > widest else s
                         for s in (block.left, block.right)]  # fmt: skip
                matrix = torch.block_diag(*(torch.kron(a, b) for a, b in zip(*sides, strict=True)))
                start = row * math.prod(shape[1:])
                result[start : start + len(matrix), start : start + len(matrix)] = matrix / (block.terms * self.mass)
        return result

    def by_channel(self, name: str) -> Tensor:
        """The exact matrix of every slice along a parameter's first axis."""
        exact, count = self.exact(name), len(self.params[name])
        size = len(exact) // count
        return torch.block_diag(*(exact[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(count)))

    def approximation(self, kinds: dict[str, str], widest: float = math.inf) -> Tensor:
        """The whole matrix, given which parameters have which kind of block."""
        make = {
            "kronecker": lambda name: self.kronecker(name, widest),
            "exact": self.exact,
            "blocks": self.by_channel,
            "diagonal": lambda name: torch.diag(self.exact(name).diagonal()),
            "unused": lambda name: torch.zeros_like(self.exact(name)),
        }
        return torch.block_diag(*(make[kinds[name]](name) for name in self.params))


def matrix(
    plain: nn.Module, inputs: Any, cotangents: Sequence[Tensor], mass: float, approximation: str, names: Sequence[str]
) -> Matrix:
    """KFAC of a model whose output is pulled back along some cotangents, each like the output.

    Args:
        plain, inputs: the model, built of PyTorch's own functions.
        cotangents: the matrix is the sum of outer products of the rows that they give, divided by the mass.
        mass: see there.
        approximation: "expand" or "reduce".
        names: of the trainable parameters.
    """
    params = dict(zip(names, oracle.trainable(plain), strict=True))
    count = len(cotangents[0])
    with Recorder(count) as recorder:
        output = oracle.run(plain, inputs)
    blocks: dict[tuple[str, int], Block] = {}
    jacobian, _ = references.output_jacobian(plain, inputs)
    jacobian = jacobian.reshape(count, output[0].numel(), -1)
    dense = torch.zeros(jacobian.shape[2], jacobian.shape[2], dtype=output.dtype)
    for cotangent in cotangents:
        rows = torch.einsum("nc,ncd->nd", cotangent.flatten(1), jacobian)
        dense += rows.mT @ rows / mass
        grads = torch.autograd.grad(output, [s.output for s in recorder.seen], cotangent, retain_graph=True)
        uses: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}
        counting = {_find(params, seen.weight) for seen in recorder.seen if seen.counts}
        for seen, g in zip(recorder.seen, grads, strict=True):
            key = _find(params, seen.weight)
            if key is not None:
                uses.setdefault(key, []).append(seen.factors(g))
        for key, pairs in uses.items():
            if len({tuple(first.shape[3:]) for first, _ in pairs}) == 1:
                _add(blocks, key, *(torch.cat(side, 2) for side in zip(*pairs, strict=True)), approximation, key in counting)
    return Matrix(dense, blocks, params, mass)


def _find(params: dict[str, Tensor], weight: Tensor) -> tuple[str, int] | None:
    """The parameter whose rows a weight is, and the first of them."""
    for name, p in params.items():
        offset = weight.data_ptr() - p.data_ptr()
        if weight.untyped_storage().data_ptr() == p.untyped_storage().data_ptr() and weight.stride() == p.stride():
            return name, offset // (p.element_size() * p.stride(0))
    return None


def _add(
    blocks: dict[tuple[str, int], Block], key: tuple[str, int], first: Tensor, second: Tensor, approximation: str, counts: bool
) -> None:
    terms = int(first.sum()) if counts else first.shape[0] * first.shape[2]
    if approximation == "reduce":
        first, second, terms = first.sum(2, keepdim=True), second.mean(2, keepdim=True), len(first)
    left, right = (torch.einsum("ngta,ngtb->gab", x, x) for x in (first, second))
    if key in blocks:
        old = blocks[key]
        left, right, terms = old.left + left, old.right + right, old.terms + terms
    blocks[key] = Block(left, right, terms)


def roots(loss: references.Loss, output: Tensor, targets: Any) -> list[Tensor]:
    """Cotangents whose outer products are the batch loss's Hessian by the output."""
    H = references.loss_hessian_by_output(loss, output, targets)
    n, c = len(output), output[0].numel()
    blocks = torch.stack([H[i * c : (i + 1) * c, i * c : (i + 1) * c] for i in range(n)])
    values, vectors = torch.linalg.eigh(blocks)
    scaled = vectors * values.where(values > 1e-12 * values.max(), 0).sqrt().unsqueeze(1)
    return [scaled[:, :, k].reshape(output.shape) for k in range(c)]


def slopes(loss: references.Loss, output: Tensor, targets: Any) -> list[Tensor]:
    """The cotangent of a loss that is a sum over samples."""
    free = output.detach().requires_grad_()
    return [torch.autograd.grad(loss(free, targets), free)[0]]


def lstm(memory: nn.LSTM, x: Tensor) -> Tensor:
    """What an LSTM of one layer returns for ``[n, T, I]``, step by step (Hochreiter, Schmidhuber 1997)."""
    h = c = x.new_zeros(len(x), memory.hidden_size)
    states = []
    for step in x.unbind(1):
        a = F.linear(step, memory.weight_ih_l0, memory.bias_ih_l0) + F.linear(h, memory.weight_hh_l0, memory.bias_hh_l0)
        i, f, g, o = a.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states, 1)


def gru(memory: nn.GRU, x: Tensor) -> Tensor:
    """What a GRU of one layer returns for ``[n, T, I]``, step by step (Cho et al. 2014)."""
    h = x.new_zeros(len(x), memory.hidden_size)
    states = []
    for step in x.unbind(1):
        a = F.linear(step, memory.weight_ih_l0, memory.bias_ih_l0).chunk(3, 1)
        b = F.linear(h, memory.weight_hh_l0, memory.bias_hh_l0).chunk(3, 1)
        r, z = (a[0] + b[0]).sigmoid(), (a[1] + b[1]).sigmoid()
        n = (a[2] + r * b[2]).tanh()
        h = (1 - z) * n + z * h
        states.append(h)
    return torch.stack(states, 1)
