"""After an exchange failed: which processes give no sign of life."""

from __future__ import annotations

import time

import torch.distributed as dist

_PATIENCE_SECONDS = 2.0


def silent_ranks(place: str, rank: int, group: dist.ProcessGroup | None) -> list[int]:
    """The ranks that have not come to the same place within two seconds; none where nothing can be told.

    Every process whose exchange failed leaves a note in the store by which the group was started, and looks for the others'.

    Args:
        place: names the exchange.
        rank: of this process.
        group: whose ranks are meant.
    """
    end = time.monotonic() + _PATIENCE_SECONDS
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"hesse/{place}/{rank}", "here")
        missing = [other for other in range(dist.get_world_size(group)) if other != rank]
        while missing:
            missing = [other for other in missing if not store.check([f"hesse/{place}/{other}"])]
            if time.monotonic() > end:
                break
            time.sleep(0.05)
    except RuntimeError:  # the process that held the store is gone
        return []
    return missing
