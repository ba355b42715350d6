"""Thousands of convolutions, singular ones included: each rung's pseudo-inverse against `torch.linalg.pinv`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

import hesse
from hesse.convolutions import ladder
from tests.convolutions.configurations import COUNT, Configuration, configuration
from tests.convolutions.exact import EPS, LONG, pseudo_solution, spectrum
from tests.convolutions.scores import ALLOWED, Score, made_by, relative, score

Sweep = Callable[[Sequence[int], int], list[int]]
TROUBLED = 0.01  # it is half of that, and 3 of 8 in one run of 190,000
KEPT = {"auto": 75, "boundary": 8, "circular": 100, "patches": 100, "krylov": 10}
BENIGN = ("identity", "noiseless_identity", "fan_in", "shift")


def report(scores: list[Score]) -> str:
    """How many of each kind, and the texts of those that are wrong."""
    wrong = [f"{s.kind} ({s.ratio:.1e}) {s.text}" for s in scores if not s.fine]
    return "\n".join([f"{dict(Counter(s.kind for s in scores))}", *wrong[:20]]) if wrong else ""


def test_every_configuration_is_inverted(sweep: Sweep) -> None:
    scores = [score(configuration(number), made_by("auto")) for number in sweep(range(COUNT), KEPT["auto"])]
    assert not report(scores)
    assert all(s.kind != "inapplicable" for s in scores)


def test_every_configuration_by_its_boundary(sweep: Sweep) -> None:
    """Alone, without a way behind it; where its certificate fails it says so, which is rare."""
    scores = [score(configuration(number), made_by("boundary")) for number in sweep(range(COUNT), KEPT["boundary"])]
    troubled = [s for s in scores if s.kind == "troubled"]
    assert not report([s for s in scores if s.kind != "troubled"])
    assert all(s.kind != "inapplicable" for s in scores)
    assert len(troubled) <= 2 + TROUBLED * len(scores), report(troubled)


@pytest.mark.parametrize("method", ["circular", "patches"])
def test_a_rung_that_applies_is_right(method: str, sweep: Sweep) -> None:
    scores = [score(configuration(number), made_by(method)) for number in sweep(range(COUNT), KEPT[method])]
    assert not report(scores)
    assert any(s.kind == "right" for s in scores)


def test_krylov_on_benign_kernels(sweep: Sweep) -> None:
    numbers = sweep(range(COUNT // 4), KEPT["krylov"])
    configurations = [replace(configuration(number, kernels=BENIGN), rtol=None) for number in numbers]
    scores = [score(c, made_by("krylov")) for c in configurations]
    # one that lacks rank may say that singular values have to be cut off, which iterations cannot
    assert not report([s for s in scores if s.condition < 30 and not (s.deficient and s.kind == "troubled")])
    assert not [s.text for s in scores if s.kind in ("WRONG", "PENROSE", "crashed")]


def test_the_public_face(sweep: Sweep) -> None:
    """`hesse.pinv` of a convolution and of its transpose, and `lstsq` with its certificate."""
    for number in sweep(range(COUNT), 15):
        c = configuration(number)
        M, A = c.matrix(), c.operator()
        known = spectrum(M, c.rtol)
        if not known.clear:
            continue
        y, x = c.random(*A.out_space.shapes[0]), c.random(*A.in_space.shapes[0])
        plus, unit = torch.linalg.pinv(M, rtol=c.rtol), ALLOWED * known.condition * EPS
        pairs = [
            (hesse.pinv(A, rtol=c.rtol) @ y, M, y),
            (hesse.pinv(A.T, rtol=c.rtol) @ x, M.mT, x),
        ]
        if c.rtol is None:
            pairs.append((hesse.lstsq(A, y), M, y))
        for found, of, given in pairs:
            error = relative(found.flatten(), (plus if of is M else plus.mT) @ given.flatten())
            if error > unit and LONG:
                error = relative(found.flatten(), pseudo_solution(of.contiguous(), given.flatten(), known.rank))
            assert error <= unit, f"{c}: {error:.1e}, allowed {unit:.1e}"


@pytest.mark.parametrize("method", ["auto", "boundary"])
def test_solutions_known_in_integers(method: str, sweep: Sweep) -> None:
    """``y = A A^H w`` in integers, without rounding: ``A⁺ y`` is ``A^H w``, of which no other solver has a say."""
    for number in sweep(range(300), 15):
        c = configuration(number, kernels=("integers", "difference", "dead_channels"))
        c = _rounded(c)
        M = c.matrix()
        known = spectrum(M, None)
        if not known.clear or not known.rank:
            continue
        w = (4 * c.random(M.shape[0])).real.round().to(M.dtype)
        x = M.mH @ w
        y = M @ x
        found = ladder.inverse(c.operator(), method=method).apply(y.reshape(1, *c.out_shape)).value.flatten()
        assert relative(found, x) <= ALLOWED * known.condition * EPS, c


def _rounded(c: Configuration) -> Configuration:
    """With a weight of small integers."""
    scaled = c.weight / c.weight.abs().max().clamp(min=1e-200) * 4
    whole = torch.complex(scaled.real.round(), scaled.imag.round()) if scaled.is_complex() else scaled.round()
    return replace(c, weight=whole, rtol=None)


def test_the_configurations_cover_what_they_should() -> None:
    seen: Counter[str] = Counter()
    for number in range(0, COUNT, 5):
        c = configuration(number)
        m, n = math.prod(c.out_shape), math.prod(c.in_shape)
        known = spectrum(c.matrix(), c.rtol)
        seen[f"{len(c.stride)}-D"] += 1
        seen[c.padding_mode] += 1
        seen["tall" if m > n else "wide" if m < n else "square"] += 1
        seen["rank-deficient"] += known.rank < min(m, n)
        seen["no gap"] += not known.clear
        seen["strided"] += max(c.stride) > 1
        seen["dilated"] += max(c.dilation) > 1
        seen["groups"] += c.groups > 1
        seen["complex"] += c.weight.is_complex()
        seen["asymmetric"] += any(before != after for before, after in c.padding)
        seen["even"] += any(k % 2 == 0 for k in c.weight.shape[2:])
        seen["ill-conditioned"] += known.condition > 1e4
    assert min(seen.values()) >= 5, seen
    assert seen["rank-deficient"] > 150, seen


def test_the_solution_to_more_digits_is_the_pseudo_inverse(sweep: Sweep) -> None:
    """LAPACK's pseudo-inverse is as near to it as its own rounding errors let it be."""
    for number in sweep(range(0, COUNT, 12), 12):
        c = configuration(number)
        M = c.matrix()
        known, y = spectrum(M, c.rtol), c.random(M.shape[0])
        if known.clear and known.condition < 1e9 and M.shape[0] <= 200:
            error = relative(torch.linalg.pinv(M, rtol=c.rtol) @ y, pseudo_solution(M, y, known.rank))
            assert error <= ALLOWED * known.condition * EPS, c


@pytest.mark.skipif(not LONG, reason="a long double is a double here")
def test_the_solution_to_more_digits_has_them() -> None:
    """A Hilbert matrix in integers, condition 5e11, and a solution in integers."""
    n = 9
    common = math.lcm(*range(1, 2 * n))
    hilbert = torch.tensor([[common // (i + j + 1) for j in range(n)] for i in range(n)], dtype=torch.float64)
    x = torch.arange(1.0, n + 1, dtype=torch.float64)
    assert relative(torch.linalg.pinv(hilbert) @ (hilbert @ x), x) > 1e-7
    assert relative(pseudo_solution(hilbert, hilbert @ x, n), x) < 1e-8
