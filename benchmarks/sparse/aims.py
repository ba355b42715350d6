"""What the library wants to reach, as ratios in one run, and whether it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.sparse.cases import CASES, LARGE, MIDDLE, MILLION, SMALL
from benchmarks.sparse.found import Found, Key, Stage

JACOBIANS = ("burgers", "brusselator_1d", "brusselator_2d")
GIB = 2**30


@dataclass(frozen=True)
class Aim:
    """A number that is to be at least, or at most, so large.

    Attributes:
        title: what is measured.
        bound: the number.
        least: whether more is better.
        value: the number that was found, or None.
        unit: after the numbers.
    """

    title: str
    bound: float
    least: bool
    value: Callable[[Found], float | None]
    unit: str = "x"

    @property
    def wanted(self) -> str:
        """The bound, in words."""
        return f"at {'least' if self.least else 'most'} {self.bound:,g}{self.unit}"

    def show(self, value: float) -> str:
        """The number that was found, in words."""
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        return f"{text}{self.unit}"

    def reached(self, value: float) -> bool:
        """Whether the number is good enough."""
        return value >= self.bound if self.least else value <= self.bound


def aims() -> list[Aim]:
    """All of them."""
    return [*_against_dense(), *_detection(), *_overhead(), *_against_asdex(), *_million(), *_colors()]


def _ratio(key: Key, above: Stage, below: Stage) -> Callable[[Found], float | None]:
    return lambda found: found.ratio(key, above, below)


def _against_dense() -> list[Aim]:
    jacrev, first, prepared = ("reverse", "dense"), ("hesse", "first"), ("hesse", "prepared")
    return [
        Aim("Burgers, 10,000: jacrev / first call", 100, True, _ratio(("burgers", MIDDLE), jacrev, first)),
        Aim("Brusselator 1-D, 10,000: jacrev / first call", 60, True, _ratio(("brusselator_1d", MIDDLE), jacrev, first)),
        Aim("Burgers, 10,000: jacrev / prepared", 4_000, True, _ratio(("burgers", MIDDLE), jacrev, prepared)),
        Aim("Brusselator 1-D, 10,000: jacrev / prepared", 4_000, True, _ratio(("brusselator_1d", MIDDLE), jacrev, prepared)),
        Aim("arrow-head Hessian, 3,200: best dense / prepared", 500, True, _best_dense(("volatility", 3_200))),
    ]


def _best_dense(key: Key) -> Callable[[Found], float | None]:
    def value(found: Found) -> float | None:
        ratios = [found.ratio(key, (way, "dense"), ("hesse", "prepared")) for way in ("reverse", "forward")]
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    return value


def _detection() -> list[Aim]:
    stages = ("asdex", "detect"), ("hesse", "detect")
    found = []
    for name in JACOBIANS:
        _, middle, large = CASES[name].sizes[:3]
        found.append(
            Aim(f"{CASES[name].title}, {middle:,}: asdex / hesse, detection", 1, True, _ratio((name, middle), *stages))
        )
        found.append(Aim(f"{CASES[name].title}, {large:,}: asdex / hesse, detection", 30, True, _ratio((name, large), *stages)))
    return found


def _overhead() -> list[Aim]:
    """What the first call takes beyond a prepared one and the coloring."""

    def overhead(key: Key) -> Callable[[Found], float | None]:
        def value(found: Found) -> float | None:
            first, *rest = (found.seconds(key, ("hesse", what)) for what in ("first", "prepared", "color"))
            known = [seconds for seconds in rest if seconds is not None]
            return None if first is None or len(known) < 2 else 1e3 * (first - sum(known))

        return value

    return [
        Aim(f"{CASES[name].title}, {n:,}: overhead of the first call", bound, False, overhead((name, n)), " ms")
        for name, n, bound in (("burgers", SMALL, 20), ("brusselator_1d", SMALL, 20), ("brusselator_2d", 2_048, 40))
    ]


def _against_asdex() -> list[Aim]:
    found = []
    for name in JACOBIANS:
        _, middle, large = CASES[name].sizes[:3]
        title = CASES[name].title
        native = 2.0 if name == "brusselator_2d" else 1.5
        for n, bound in ((middle, native), (large, 1.0)):
            ratio = _ratio((name, n), ("native", "prepared"), ("asdex", "prepared"))
            found.append(Aim(f"{title}, {n:,}: native / asdex, prepared", bound, False, ratio))
        for n in (middle, large):
            ratio = _ratio((name, n), ("hesse", "prepared"), ("asdex", "prepared"))
            found.append(Aim(f"{title}, {n:,}: replay / asdex, prepared", 4, False, ratio))
    return found


def _million() -> list[Aim]:
    key = ("burgers", MILLION)

    def stages(found: Found) -> float | None:
        times = [found.seconds(key, ("hesse", what)) for what in ("detect", "color")]
        return None if None in times else sum(t for t in times if t is not None)

    def peak(found: Found) -> float | None:
        result = found.get(key, "hesse", "whole")
        return result["peak"] / GIB if result and result["status"] == "ok" else None

    return [
        Aim("Burgers, 1,000,000: detection and coloring", 1, False, stages, " s"),
        Aim("Burgers, 1,000,000: end to end", 5, False, lambda found: found.seconds(key, ("hesse", "whole")), " s"),
        Aim("Burgers, 1,000,000: peak memory of the process", 4, False, peak, " GiB"),
    ]


def _colors() -> list[Aim]:
    def colors(key: Key) -> Callable[[Found], float | None]:
        def value(found: Found) -> float | None:
            result = found.get(key, "hesse", "color")
            return result["colors"] if result and result["status"] == "ok" else None

        return value

    known = {
        ("burgers", LARGE): 3,
        ("brusselator_1d", LARGE): 4,
        ("volatility", 3_200): 5,
        ("mlp", CASES["mlp"].sizes[0]): 4,
        ("band", LARGE): 7,
        ("blocks", MIDDLE): 8,
    }
    return [
        Aim(f"{CASES[name].title}, {n:,}: colors", bound, False, colors((name, n)), "") for (name, n), bound in known.items()
    ]
