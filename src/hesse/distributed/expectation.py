"""How long a product over processes should take: a model of ranks, latency and bandwidth."""

from __future__ import annotations

import numbers as kinds
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hesse.core.errors import StructureError
from hesse.distributed.link import ROOM, header_bytes
from hesse.distributed.repeats import MOST_BYTES

_MOST = 1e30


@dataclass(frozen=True)
class Expectation:
    """The seconds that a product should take.

    Attributes:
        work: of the slowest process on its own data.
        header: of the exchange that products begin with; 0 where it travels with the numbers.
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
    work: float, numbers: int, ranks: int, *, latency: float, bandwidth: float, itemsize: int = 4, before: int = 0
) -> Expectation:
    """The time of a product with an operator over the data of several processes, by the model of a ring all-reduce.

    A ring of p processes passes a buffer of b bytes on in ``2 (p - 1)`` steps of ``b / p`` bytes (Patarasuk, Yuan, Journal of
    Parallel and Distributed Computing 69, 2009), so that it takes ``2 (p - 1) (latency + b / (p bandwidth))`` seconds. A
    product is one such exchange for the header, and another for its numbers where there are more than 1,024. After two
    products of the same kind, with numbers of at most 256 KiB for each process, the header travels with the numbers.

    Args:
        work: seconds that one process would need for all data.
        numbers: of the product: the dimension, times the vectors of a block.
        ranks: processes, each with an equal share of the data.
        latency: seconds of one step, however few bytes.
        bandwidth: bytes a second between neighbors.
        itemsize: bytes a number.
        before: products of the same kind that went before, one right after the other.

    Returns:
        the parts and their sum. Trees, which NCCL takes for small messages, have fewer steps: then it is a bound from above.

    Raises:
        StructureError: a number that is negative or infinite, a bandwidth of zero, a count that is no integer.
    """
    _require_numbers({"work": work, "latency": latency, "bandwidth": bandwidth}, kinds.Real, 0)
    _require_numbers({"numbers": numbers, "before": before}, kinds.Integral, 0)
    _require_numbers({"ranks": ranks, "itemsize": itemsize}, kinds.Integral, 1)
    if not bandwidth > 0:
        raise StructureError("A model of time divides by the bandwidth.", f"bandwidth={bandwidth!r}", "pass bytes a second")
    if ranks == 1:
        return Expectation(work, 0.0, 0.0, 0.0)
    apart = numbers * itemsize if numbers > ROOM else 0
    is_expected = before >= 2 and 0 < apart <= ranks * MOST_BYTES
    head = 0 if is_expected else header_bytes(ranks)
    steps, share = 2 * (ranks - 1), 2 * (ranks - 1) / ranks
    return Expectation(
        work=work / ranks,
        header=steps * latency + share * head / bandwidth if head else 0.0,
        payload=steps * latency + share * apart / bandwidth if apart else 0.0,
        bytes_sent=share * (head + apart),
    )


def _require_numbers(named: Mapping[str, Any], kind: type, least: int) -> None:
    for name, value in named.items():
        if not (isinstance(value, kind) and not isinstance(value, bool) and least <= value <= _MOST):
            words = "an integer" if kind is kinds.Integral else "a number"
            asked = f"expected_seconds takes {words} from {least} to {_MOST:g} for {name}=."
            raise StructureError(asked, f"{name}={value!r}"[:200], "pass seconds, bytes a second, and counts")
