"""Making, storing and refusing projections."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hesse
from hesse.core.errors import LeafError, StructureError, UnsupportedError
from hesse.core.space import Space
from hesse.operators.projections import random_projection

from ..zoo import drawing
from .test_numbers import KINDS, make

T = drawing(torch.float64)


def test_what_a_projection_can_be_of() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()
    model[1].bias.requires_grad_(False)
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    J = hesse.parameter_jacobian(model, None, T(2, 3))
    expected = hesse.dense(random_projection(params, 4))
    for space in (model, nn.DataParallel(model), Space.of(params), J, (lambda p, x: x, params)):
        P = random_projection(space, 4)
        assert P.in_space == J.in_space
        assert torch.equal(hesse.dense(P), expected)


@KINDS
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch, when a tree's structure is copied
def test_files(options: dict[str, Any], tmp_path: Path) -> None:
    example = {"b": T(3, 2), "a": T(9)}
    P = random_projection(example, 6, seed=2**62 + 5, dtype=torch.float32, **options)
    hesse.save(P, tmp_path / "p")
    for Q in (hesse.load(tmp_path / "p"), copy.deepcopy(P), pickle.loads(pickle.dumps(P))):
        assert type(Q) is type(P)
        assert Q.settings == P.settings
        assert torch.equal(hesse.dense(Q), hesse.dense(P))
    assert (tmp_path / "p").stat().st_size < 2000


@KINDS
def test_settings_tell_projections_apart(options: dict[str, Any]) -> None:
    settings = make(20, 6, options).settings
    assert settings["rows"] == 6
    assert settings["columns"] == 20
    assert settings["kind"] == options["kind"]
    single = make(20, 6, options, 5, torch.float32)
    for other in (make(20, 6, options, seed=6), make(20, 7, options), make(21, 6, options), single):
        assert other.settings != settings


def test_a_generator_gives_the_seed() -> None:
    def drawn(number: int) -> Any:
        return random_projection(T(5), 3, generator=torch.Generator().manual_seed(number))

    assert drawn(1).seed == drawn(1).seed != drawn(2).seed
    assert torch.equal(hesse.dense(drawn(1)), hesse.dense(random_projection(T(5), 3, seed=drawn(1).seed)))
    assert random_projection(T(5), 3).seed == random_projection(T(5), 3).seed


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 2.5}, "k=2.5"),
        ({"k": True}, "k=True"),
        ({"k": 4, "kind": "normal"}, "kind='normal'"),
        ({"k": 4, "kind": "fjlt", "nonzeros": 2}, "nonzeros= with"),
        ({"k": 4, "kind": "rademacher", "nonzeros": 5}, "nonzeros=5"),
        ({"k": 4, "kind": "rademacher", "nonzeros": 0}, "nonzeros=0"),
        ({"k": 4, "seed": 1, "generator": torch.Generator()}, "together"),
        ({"k": 4, "dtype": torch.int64}, "int64"),
        ({"k": 4, "dtype": torch.complex64}, "complex64"),
        ({"k": 4, "dtype": "float32"}, "torch.float32"),
        ({"k": 4, "seed": 1.5}, "seed=1.5"),
        ({"k": 4, "seed": "1"}, "seed='1'"),
        ({"k": 4, "seed": True}, "seed=True"),
        ({"k": 4, "generator": 3}, "generator=3"),
    ],
)
def test_what_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(StructureError, match=word):
        random_projection(T(5), **options)


def test_spaces_that_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="'b'"):
        random_projection({"a": T(3), "b": T(2).to(torch.complex128)}, 3)
    with pytest.raises(LeafError, match="'b'"):
        random_projection({"a": T(3), "b": torch.arange(3)}, 3)


@pytest.mark.parametrize("space", [torch.empty(0), {}, 3, None, "a", nn.Linear(2, 2).requires_grad_(False)])
def test_nothing_to_project(space: Any) -> None:
    with pytest.raises(StructureError, match="no numbers in"):
        random_projection(space, 3)


@KINDS
def test_blocks_of_another_shape(options: dict[str, Any]) -> None:
    P = make(23, 6, options)
    for vectors, places in ((T(2, 7), None), (T(23), None), (T(2, 23), slice(3, 9)), (T(2, 23), torch.tensor([1, 2]))):
        with pytest.raises(StructureError, match=r"times\(vectors\) takes rows of"):
            P.times(vectors, places)
    with pytest.raises(StructureError, match=r"back\(weights\) takes rows of 6"):
        P.back(T(2, 5))
