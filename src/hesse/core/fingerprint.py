"""What a sample's content hashes to, wherever in whatever batch it comes; and the order-free fingerprint of many.

All bytes of a sample are read as integer words ``w_j`` and summed up with odd constants, ``sum_j a_j g(a_j w_j) mod 2^64``,
where ``g(x) = x ^ (x >> 32)``; splitmix64 mixes the sum. (Without g, the multilinear hash of Carter and Wegman 1979, the
highest bits of a word would fall on the highest bit of the sum whatever their place, and two changed signs would cancel.)
A change of one word is always seen; others are missed with a probability of about 2^-32 for few changed bits, 2^-64 for many.
It is no defense against forgery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesse.core import tree
from hesse.core.errors import DataError
from hesse.core.mixing import counters, mix, signed
from hesse.core.tree import Tree
from hesse.core.wrapped import is_sharded

_DOT = "\x1f"  # stands for a dot within a key
_WORDS_AT_ONCE, _FEW = 2**18, 2**12
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def sample_hashes(*trees: Tree) -> Tensor:
    """A hash of each sample's content, over all leaves of all trees together (a batch's inputs and targets).

    The leaves' paths (keys of dicts, places in lists), dtypes and shapes take part, also the paths of what is no tensor; the
    sample's place in the batch, the other samples, the order of keys, the memory layout and the device do not. Tensors (and
    arrays) without axes and everything that is no tensor count for every sample. Where the leaves do not agree in their leading
    axis, or there is none, the whole batch is one sample.

    Args:
        *trees: nested containers whose tensors have the samples on axis 0.

    Returns:
        int64 ``[n]`` on the device of the first leaf that has samples.

    Raises:
        DataError: a leaf that is sharded over ranks.

    Cost: one pass over the bytes, five operations for eight of them.
    """
    named = [(f"{index}.{_joined(path)}", leaf) for index, batch in enumerate(trees) for path, leaf in _leaves(batch)]
    for name, leaf in named:
        if is_sharded(leaf):
            where = name.partition(".")[2].replace(_DOT, ".")
            found = f"a DTensor{f' at {where!r}' if where else ''}: {leaf.placements}"
            remedy = "pass this rank's samples: .to_local(), or .full_tensor()"
            raise DataError("Data are tensors of this process.", found, remedy)
    tensors = [(name, leaf) for name, leaf in named if isinstance(leaf, Tensor)]
    lengths = {leaf.shape[0] for _, leaf in tensors if leaf.ndim}
    whole = len(lengths) != 1
    count = 1 if whole else lengths.pop()
    device = next((leaf.device for _, leaf in tensors if leaf.ndim), torch.device("cpu"))
    shared = _number(";".join(sorted(f"{name}={_text(leaf)}" for name, leaf in named if not isinstance(leaf, Tensor))))
    total = torch.full((count,), shared, dtype=torch.int64, device=device)
    for name, leaf in tensors:
        rows = leaf.unsqueeze(0) if whole or not leaf.ndim else leaf
        salt = _number(f"{name}: {leaf.dtype} {tuple(rows.shape[1:])}")
        total += _summed(rows, salt).to(device)
    return mix(total)


def fingerprint(*hashes: Tensor) -> int:
    """One number for the samples of a data set, whatever their order: their count and the sum of their hashes.

    Args:
        *hashes: int64 ``[n]`` of `sample_hashes`, one tensor a batch.
    """
    count = sum(part.numel() for part in hashes)
    return (count << 64) + sum(int(part.sum()) for part in hashes) % 2**64


def _leaves(batch: Tree) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every leaf and the keys that lead to it; arrays as tensors."""
    for path, leaf in tree.named_parts(batch):
        if isinstance(leaf, Mapping):
            yield from (((*path, *inner), part) for inner, part in _leaves(dict(leaf)))
        elif isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
            yield path, torch.from_numpy(np.ascontiguousarray(leaf))
        else:
            yield path, leaf


def _joined(path: tuple[str, ...]) -> str:
    return ".".join(key.replace(".", _DOT) for key in path)


def _text(leaf: Any) -> str:
    """The leaf printed; of objects that print as their address only the type."""
    return str(type(leaf)) if type(leaf).__repr__ is object.__repr__ or callable(leaf) else repr(leaf)


def _number(text: str) -> int:
    return signed(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def _summed(rows: Tensor, salt: int) -> Tensor:
    """``salt + sum_j a_j g(a_j w_j)`` of the words of each row, int64 ``[n]``, in pieces that stay in the cache."""
    rows = rows.detach()
    rows = rows if rows.layout is torch.strided else rows.to_dense()
    rows = torch.view_as_real(rows.resolve_conj()) if rows.is_complex() else rows.resolve_neg()
    count, size = rows.shape[0], rows[:1].numel() * rows.element_size()
    total = torch.full((count,), salt, dtype=torch.int64, device=rows.device)
    if not count or not size:
        return total
    word = next(width for width in _WORDS if size % width == 0)
    width = size // word
    columns = min(width, _WORDS_AT_ONCE)
    at_once = max(_WORDS_AT_ONCE // columns, 1)
    for start in range(0, width, columns):
        odd = _odd(salt, start, min(columns, width - start), rows.device)
        for first in range(0, count, at_once):
            words = _as_words(rows[first : first + at_once], word)[:, start : start + columns]
            products = words * odd
            total[first : first + at_once] += products.bitwise_xor_(products >> 32).mul_(odd).sum(1)
    return total


def _odd(salt: int, start: int, count: int, device: torch.device) -> Tensor:
    """The odd constants of so many words of the leaf with this salt, int64 ``[count]``."""
    return _kept_odd(salt, count, device) if start == 0 and count <= _FEW else _new_odd(salt, start, count, device)


def _new_odd(salt: int, start: int, count: int, device: torch.device) -> Tensor:
    return mix(counters(start, count, device).add_(salt)).bitwise_or_(1)


@lru_cache(maxsize=64)
def _kept_odd(salt: int, count: int, device: torch.device) -> Tensor:
    return _new_odd(salt, 0, count, device)


def _as_words(rows: Tensor, word: int) -> Tensor:
    """The bytes of each row as integers of `word` bytes, ``[n, words]``."""
    flat = rows.reshape(rows.shape[0], -1).contiguous()
    if flat.storage_offset() * flat.element_size() % word:
        flat = flat.clone()
    return flat.view(_WORDS[word])
