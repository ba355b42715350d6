"""Many processes, one answer: operators and sums over data that lie on the ranks of `torch.distributed`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hesse.distributed.dealt import Dealt, deal
from hesse.distributed.expectation import Expectation, expected_seconds
from hesse.distributed.spread_data import SpreadData, spread
from hesse.distributed.traffic import Traffic, count_traffic

if TYPE_CHECKING:
    from hesse.distributed.gram_matrix import gather_batches, gram, gram_blocks
    from hesse.distributed.sharded_model import gathered
    from hesse.distributed.sharded_vectors import ShardedOperator, gather, shard, sharded
    from hesse.distributed.shards import write_gram, write_rows

_LAZY = {
    "gather_batches": "gram_matrix",
    "gram": "gram_matrix",
    "gram_blocks": "gram_matrix",
    "ShardedOperator": "sharded_vectors",
    "gather": "sharded_vectors",
    "shard": "sharded_vectors",
    "gathered": "sharded_model",
    "sharded": "sharded_vectors",
    "write_gram": "shards",
    "write_rows": "shards",
}  # where torch.distributed.tensor, or as much, is imported

__all__ = [
    "Dealt",
    "Expectation",
    "ShardedOperator",
    "SpreadData",
    "Traffic",
    "count_traffic",
    "deal",
    "expected_seconds",
    "gather",
    "gather_batches",
    "gathered",
    "gram",
    "gram_blocks",
    "shard",
    "sharded",
    "spread",
    "write_gram",
    "write_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
