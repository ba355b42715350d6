"""No false zero for any op of PyTorch's own database: the pattern from one run holds every entry of the Jacobian that plain
autograd finds, at that point and at others. `make test-all` looks at every entry, `make test` at some."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch

from hesse.core.errors import HesseError, NonFiniteError, UnsupportedError
from hesse.sparse.detect import sparsity
from tests.rules.sparsity.op_database import Sample, entries, jacobian, points, samples

REFUSED = {  # entries that global patterns do not exist for, or some samples of which are no valid input
    "combinations": (UnsupportedError, "the size of the result depends on a mask"),
    "masked_select": (UnsupportedError, "the size of the result depends on the mask, which depends on the input"),
    "to_sparse": (UnsupportedError, "a sparse result"),
    "nn.functional.gaussian_nll_loss": (UnsupportedError, "PyTorch reads in Python whether a variance is negative"),
    "nanmean": (NonFiniteError, "NaN in the input"),
    "nansum": (NonFiniteError, "NaN in the input"),
}
PARTS = 20
KEPT, SAMPLES = 2, 20  # entries of a part, and samples of an entry, that `make test` looks at


@pytest.mark.parametrize("part", range(PARTS))
def test_no_false_zero_in_the_op_database(part: int, sweep) -> None:
    seen = Counter[str]()
    for name in sweep(list(entries())[part::PARTS], KEPT):
        for sample in sweep(list(samples(name)), SAMPLES):
            seen[look(sample)] += 1
    print(dict(seen))  # shown where the test fails, or by -rA
    assert seen["compared"] + seen["refused"] + seen["not differentiable"] == seen.total()


def look(sample: Sample) -> str:
    """Compare one sample, and say what became of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exact, rows, shapes = jacobian(sample, sample.inputs)
        except (RuntimeError, ValueError):
            return "not differentiable"
        try:
            found = sparsity(sample.f, sample.inputs)
        except HesseError as error:
            assert sample.name in REFUSED, f"{sample.name}, sample {sample.number}: {error}"
            assert isinstance(error, REFUSED[sample.name][0])
            return "refused"
        known = torch.from_numpy(found.pattern.to_scipy()[rows.numpy()].toarray() != 0)
        missing = [((exact != 0) & ~exact.isnan() & ~known)]
        for point in points(sample)[1:]:
            try:
                other, _, found_shapes = jacobian(sample, point)
            except (RuntimeError, ValueError):  # no valid input any more
                continue
            assert found_shapes == shapes, f"{sample.name}, sample {sample.number}: the shape depends on the input"
            missing.append((other != 0) & ~other.isnan() & ~known)
    lost = torch.stack(missing).any(0).nonzero().tolist()
    assert not lost, f"{sample.name}, sample {sample.number}: no entries at {lost[:5]}"
    return "compared"


def test_refused_entries_exist() -> None:
    assert set(REFUSED) <= set(entries())
