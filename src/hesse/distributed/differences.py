"""What processes tell each other when one failed, or when they were asked different things; and the error of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from hesse.core.errors import DistributedError

_IN_ORDER = "Every process has to ask the same things in the same order"
_SAME_CODE = "run the same code on all processes, with the same memory budget, and no branch on what only one of them knows"
_MOST = 500  # characters of another process's error
_BITS = 52  # of a hash: an integer that float64 holds exactly


@dataclass(frozen=True)
class Told:
    """What one process tells.

    Attributes:
        asked: what it was asked.
        question: the how many-th question that is.
        error: its error as text, or "".
        given: a hash of what it was given.
        details: named hashes of which `given` is made.
        by: which data, and which operator of them, it was asked of.
        links: made so far.
    """

    asked: str
    question: int
    error: str
    given: int
    details: dict[str, int] | None
    by: str = ""
    links: int = 0


class Earlier(Exception):
    """Stands for an error that was raised before the others could be told; its text says which."""


def brief(error: BaseException) -> str:
    """An error as text, for another process's message: its first lines."""
    text = str(error) if isinstance(error, Earlier) else f"{type(error).__name__}: {error}"
    if len(text) <= _MOST:
        return text
    cut = text[:_MOST]
    whole_lines = cut[: cut.rfind("\n")] if "\n" in cut[_MOST // 2 :] else cut
    return f"{whole_lines} ..."


def hash_text(text: str) -> int:
    """An integer below 2^52."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> (64 - _BITS)


def explained(what: str, told: Sequence[Told], rank: int) -> DistributedError:
    """The error that says which process failed, asked something else, or was given something else.

    Args:
        what: was asked here.
        told: by each rank.
        rank: of this process.
    """
    failed = [f"rank {other}: {one.error}" for other, one in enumerate(told) if one.error]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        return DistributedError(f"{what}: over {len(told)} processes.", f"{failed[0]}{more}", "see that process's error")
    others = [f"rank {other}: {one.asked}" for other, one in enumerate(told) if one.asked != what]
    if others:
        return DistributedError(f"{_IN_ORDER}; rank {rank} asked: {what}.", "; ".join(others[:3])[:_MOST], _SAME_CODE)
    odd = [other for other, one in enumerate(told) if one.given != told[0].given]
    if not odd:
        remedy = f"{_SAME_CODE}; spread the data anew where other data were asked"
        return DistributedError(f"{_IN_ORDER}; rank {rank} asked: {what}.", _where(told)[:_MOST], remedy)
    first, theirs = told[0].details or {}, told[odd[0]].details or {}
    named = [name for name in {**first, **theirs} if theirs.get(name) != first.get(name)]
    where = f" at '{named[0]}'{f' and {len(named) - 1} more' if len(named) > 1 else ''}" if named else ""
    return DistributedError(
        f"{what} has to be the same on all {len(told)} processes.",
        f"rank {', '.join(map(str, odd))} differs from rank 0{where}",
        "load the same state everywhere, seed every process alike (torch.manual_seed, generator=), or broadcast from rank 0",
    )


def _where(told: Sequence[Told]) -> str:
    """How the same question on all processes is not the same."""
    if len({one.question for one in told}) > 1:
        places = _by_rank([str(one.question) for one in told])
        return f"the same question at different places in the order, counted from the start: {places}"
    return f"the same of other data, or of another operator: {_by_rank([one.by for one in told])}"


def _by_rank(texts: Sequence[str]) -> str:
    """What each rank says; ranks that say the same together."""
    ranks: dict[str, list[str]] = {}
    for rank, text in enumerate(texts):
        ranks.setdefault(text, []).append(str(rank))
    names = (", ".join(some[:3]) + (f" and {len(some) - 3} more" if len(some) > 3 else "") for some in ranks.values())
    return "; ".join(f"rank {name}: {text}" for name, text in zip(names, ranks, strict=True))
