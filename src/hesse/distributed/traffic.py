"""What goes over the wire: counted as it is sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_state = threading.local()


@dataclass
class Traffic:
    """What this process sent.

    Attributes:
        collectives: how many operations all processes took part in.
        bytes_sent: bytes that left this process, as a ring sends them: ``2 (p - 1) / p`` times the buffer for an all-reduce
            among p processes, ``p - 1`` times the own part for an all-gather.
        by_name: the same by what was asked: name -> (collectives, bytes).
    """

    collectives: int = 0
    bytes_sent: float = 0.0
    by_name: dict[str, tuple[int, float]] = field(default_factory=dict)

    def add(self, name: str, sent: float) -> None:
        """Count one operation."""
        count, before = self.by_name.get(name, (0, 0.0))
        self.by_name[name] = (count + 1, before + sent)
        self.collectives += 1
        self.bytes_sent += sent

    def __str__(self) -> str:
        rows = [f"  {name}: {count} x, {sent:,.0f} bytes" for name, (count, sent) in self.by_name.items()]
        return "\n".join([f"{self.collectives} collective operations, {self.bytes_sent:,.0f} bytes sent", *rows])


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Count what this thread's operators send to other processes.

    Returns:
        a `Traffic` that grows while the block runs.

    Cost: nothing is sent for it.
    """
    traffic = Traffic()
    active: list[Traffic] = getattr(_state, "active", [])
    _state.active = [*active, traffic]
    try:
        yield traffic
    finally:
        _state.active = active


def count(name: str, sent: float) -> None:
    """Add one operation to every `Traffic` that is counting."""
    for traffic in getattr(_state, "active", ()):
        traffic.add(name, sent)
