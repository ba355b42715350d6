"""How long a product over processes should take: a model of ranks, latency and bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from hesse.core.errors import StructureError
from hesse.distributed.link import ROOM, header_bytes


@dataclass(frozen=True)
class Expectation:
    """The seconds that a product should take.

    Attributes:
        work: of the slowest process on its own data.
        header: of the exchange that all products begin with.
        payload: of the all-reduce of the product's numbers; 0 where they travel with the header.
        bytes_sent: by each process.
    """

    work: float
    header: float
    payload: float
    bytes_sent: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.work + self.header + self.payload

    @property
    def efficiency(self) -> float:
        """The share of the time that is work."""
        return self.work / self.total if self.total else 1.0


def expected_seconds(
    work: float, numbers: int, ranks: int, *, latency: float, bandwidth: float, itemsize: int = 4
) -> Expectation:
    """The time of a product with an operator over the data of several processes, by the model of a ring all-reduce.

    A ring of p processes passes a buffer of b bytes on in ``2 (p - 1)`` steps of ``b / p`` bytes (Patarasuk, Yuan, Journal of
    Parallel and Distributed Computing 69, 2009), so that it takes ``2 (p - 1) (latency + b / (p bandwidth))`` seconds. A
    product is one such exchange for the header, and another for its numbers where there are more than 1,024.

    Args:
        work: seconds that one process would need for all data.
        numbers: of the product: the dimension, times the vectors of a block.
        ranks: processes, each with an equal share of the data.
        latency: seconds of one step, however few bytes.
        bandwidth: bytes a second between neighbors.
        itemsize: bytes a number.

    Returns:
        the parts and their sum. Trees, which NCCL takes for small messages, have fewer steps: then it is a bound from above.

    Raises:
        StructureError: a number that is not positive.
    """
    if not (ranks >= 1 and latency >= 0 and bandwidth > 0 and work >= 0 and numbers >= 0):
        found = f"ranks={ranks}, latency={latency}, bandwidth={bandwidth}, work={work}, numbers={numbers}"
        raise StructureError("A model of time needs numbers that are not negative.", found, "pass seconds and bytes a second")
    if ranks == 1:
        return Expectation(work, 0.0, 0.0, 0.0)
    apart = numbers * itemsize if numbers > ROOM else 0
    head = header_bytes(ranks)
    steps, share = 2 * (ranks - 1), 2 * (ranks - 1) / ranks
    return Expectation(
        work=work / ranks,
        header=steps * latency + share * head / bandwidth,
        payload=steps * latency + share * apart / bandwidth if apart else 0.0,
        bytes_sent=share * (head + apart),
    )
