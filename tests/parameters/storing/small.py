"""Small models and data whose per-sample gradients plain loops compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hesse.core.chunk_store import ChunkStore

SIZES = (4, 3, 6, 2)


def model(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3, bias=False)).to(dtype)


def batches(sizes: Iterable[int] = SIZES, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, 5, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(0, 3, (n,), generator=generator),
        )
        for n in sizes
    ]


def plain_rows(module: nn.Module, loss: Callable[..., Tensor] | None, data: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """``[N, D]`` (``[N, C, D]`` without a loss), by one call of torch.autograd.grad a row."""
    leaves, rows = [p for p in module.parameters() if p.requires_grad], []
    for inputs, targets in data:
        for x, y in zip(inputs, targets, strict=True):
            output = module(x[None])
            values = [loss(output, y[None])] if loss is not None else list(output[0])
            parts = [torch.autograd.grad(v, leaves, retain_graph=True, materialize_grads=True) for v in values]
            row = torch.stack([torch.cat([part.flatten() for part in found]) for found in parts])
            rows.append(row[0] if loss is not None else row)
    return torch.stack(rows)


def stop_after(monkeypatch: Any, chunks: int) -> None:
    """Make writers fail after so many chunks."""
    from hesse.core import chunk_store_writer

    put, count = chunk_store_writer.put_chunk, 0

    def limited(*args: Any) -> None:
        nonlocal count
        count += 1
        if count > chunks:
            raise KeyboardInterrupt
        put(*args)

    monkeypatch.setattr(chunk_store_writer, "put_chunk", limited)


def there(path: Path) -> int:
    store = ChunkStore.open(path)
    return sum(layout.count - len(store.missing(name)) for name, layout in store.arrays.items())


def files(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}
